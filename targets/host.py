"""What the machine that this runs on says about its processor: feature flags and cache sizes."""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20}


@dataclass(frozen=True)
class Host:
    """The processor of this machine.

    Attributes:
        machine: architecture as ``platform.machine`` names it.
        features: flags that every core has, named as in ``/proc/cpuinfo``.
        l1_bytes: level-1 data cache of one core; None where the system does not tell.
        l2_bytes: level-2 cache of one core; None where the system does not tell.
    """

    machine: str
    features: frozenset[str]
    l1_bytes: int | None
    l2_bytes: int | None


def read_host(cpuinfo: Path = CPUINFO, caches: Path = CACHES) -> Host:
    """Reads this machine's description from the files that Linux keeps; a missing file is no knowledge."""
    return Host(platform.machine(), _features(cpuinfo), _cache(caches, 1), _cache(caches, 2))


def _features(cpuinfo: Path) -> frozenset[str]:
    if not cpuinfo.is_file():
        return frozenset()
    text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    cores = [
        frozenset(flags.split()) for flags in re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    ]
    return frozenset.intersection(*cores) if cores else frozenset()


def _cache(folder: Path, level: int) -> int | None:
    """Bytes of the data or unified cache of ``level``."""
    for index in sorted(folder.glob("index*")):
        try:
            facts = [(index / name).read_text().strip() for name in ("level", "type", "size")]
        except OSError:
            continue  # some hypervisors list a cache without its facts
        match = re.fullmatch(r"(\d+)([KM]?)", facts[2])
        if facts[0] == str(level) and facts[1] in ("Data", "Unified") and match:
            return int(match[1]) * _UNITS[match[2]] or None
    return None
