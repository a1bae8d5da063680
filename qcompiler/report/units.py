"""Numbers with their units, as tables show them; ``-`` stands for what was not measured."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

ABSENT = "-"


def percent(fraction: float | None) -> str:
    """A fraction, such as 0.8135, as ``81.35 %``."""
    return ABSENT if fraction is None else f"{100 * fraction:.2f} %"


def milliseconds(seconds: float | None) -> str:
    """A time in seconds as ``5.83 ms``, with three digits that count."""
    if seconds is None:
        return ABSENT
    value = seconds * 1e3
    return f"{value:.{max(0, 2 - _magnitude(value))}f} ms"


def gmacs(macs_per_second: float | None) -> str:
    """Multiply-accumulates a second as ``201.4 GMAC/s``."""
    return ABSENT if macs_per_second is None else f"{macs_per_second / 1e9:.1f} GMAC/s"


def decibels(value: float | None) -> str:
    """A ratio in decibels; infinity is ``equal``."""
    if value is None:
        return ABSENT
    return "equal" if math.isinf(value) and value > 0 else f"{value:.1f} dB"


def size(count: int) -> str:
    """A number of bytes as ``4.2 MB``."""
    value, units = float(count), ["B", "kB", "MB", "GB"]
    while value >= 1000 and len(units) > 1:
        value /= 1000
        units.pop(0)
    return f"{value:.0f} B" if units[0] == "B" else f"{value:.1f} {units[0]}"


def microseconds(seconds: float | None) -> str:
    """A time in seconds as ``58.3 us``."""
    return ABSENT if seconds is None else f"{seconds * 1e6:.1f} us"


def each(core_seconds: Sequence[float] | None, threads: Sequence[int]) -> str:
    """Times at some numbers of threads, given as seconds times threads, as ``58.3 us / 30.1 us``."""
    if core_seconds is None:
        return ABSENT
    return " / ".join(microseconds(s / t) for s, t in zip(core_seconds, threads, strict=True))


def schedules(origins: Iterable[str | None], threads: Sequence[int]) -> str:
    """Where layers' schedules come from, as ``12 tuned (1 and 2 threads), 3 default``."""
    counts = Counter(origin for origin in origins if origin is not None)
    measured = f" ({' and '.join(map(str, threads))} threads)" if threads else ""
    parts = [
        f"{counts[origin]} {origin}{measured if origin == 'tuned' else ''}"
        for origin in ("tuned", "transferred", "default")
        if counts[origin]
    ]
    return ", ".join(parts) or ABSENT


def _magnitude(value: float) -> int:
    """The power of ten of the leading digit, no less than -3."""
    return max(-3, math.floor(math.log10(value))) if value > 0 else 0
