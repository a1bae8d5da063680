"""How much of the machine other programs took while engines were measured."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

import psutil

IDLE = ("idle", "iowait", "guest", "guest_nice")
"""Times that are no work, or that are counted twice: a guest's are in the user's."""


class OtherPrograms:
    """Counts from when it is made.

    Args:
        own: ids of the measured processes, which are not others; this process and the processes' children are not
            either.
    """

    def __init__(self, own: Iterable[int]) -> None:
        self._own = [psutil.Process(), *(psutil.Process(pid) for pid in own)]
        self._start = time.perf_counter()
        self._busy = _busy_seconds()
        self._used = self._own_seconds()

    def cores(self) -> float:
        """Cores that other programs kept busy, on the average since the start."""
        others = (_busy_seconds() - self._busy) - (self._own_seconds() - self._used)
        return max(0.0, others / (time.perf_counter() - self._start))

    def _own_seconds(self) -> float:
        total = 0.0
        for process in self._own:
            with suppress(psutil.NoSuchProcess):  # it has ended; its use until then counts as that of others
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total


def _busy_seconds() -> float:
    """Seconds of all cores together in which they worked, for whomever; time that a hypervisor took is in it."""
    times = psutil.cpu_times()._asdict()
    return float(sum(seconds for name, seconds in times.items() if name not in IDLE))
