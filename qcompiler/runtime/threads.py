"""How many threads a model runs on.

TVM keeps one pool of workers for every thread that calls it, makes it at the first parallel loop with half of
the hardware threads on x86, and never lets it grow. So before a model runs, the calling thread's pool is made
with room for every CPU that the thread may use, and told how many workers to use; that number may then change
from one call to the next, and models with different numbers share a process. Workers may move among the
calling thread's CPUs: pinned ones of two processes would sit on the same cores.

A thread that calls a model for the first time starts its own workers, so a server keeps its calling threads.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from qcompiler.errors import ConfigError
from qcompiler.runtime.library import global_function

_SHARE_CPUS = -3
"""TVM's affinity mode in which every worker may use every CPU of the list."""

SYSFS = Path("/sys")


class _ThreadState(threading.local):
    """The process in which this thread's pool was made; None before."""

    pool_process: int | None = None


_state = _ThreadState()


def available_cpus() -> tuple[int, ...]:
    """Numbers of the logical CPUs that the calling thread may use."""
    return tuple(sorted(os.sched_getaffinity(0)))


def physical_cores(cpus: Iterable[int], sysfs: Path = SYSFS) -> int:
    """How many physical cores ``cpus`` lie on; a CPU of unknown topology counts as a core of its own."""
    cores = set()
    for cpu in cpus:
        siblings = sysfs / f"devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.add(siblings.read_text().strip() if siblings.is_file() else f"cpu{cpu}")
    return len(cores)


def cpu_quota(sysfs: Path = SYSFS) -> float | None:
    """CPUs' worth of time that the control group (a container) grants, or None if it sets no limit."""
    unified = sysfs / "fs/cgroup/cpu.max"
    if unified.is_file():
        quota, period = unified.read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    group = sysfs / "fs/cgroup/cpu"
    if (group / "cpu.cfs_quota_us").is_file() and (group / "cpu.cfs_period_us").is_file():
        limit = int((group / "cpu.cfs_quota_us").read_text())
        return None if limit <= 0 else limit / int((group / "cpu.cfs_period_us").read_text())
    return None


def default_threads() -> int:
    """All physical cores that the process may use, and no more than its control group grants.

    Two threads of one core share its multipliers, so the second adds nothing to integer kernels.
    """
    cores = physical_cores(available_cpus())
    quota = cpu_quota()
    return cores if quota is None else max(1, min(cores, math.floor(quota)))


def check_threads(threads: int | None) -> int:
    """The number of threads to use for ``threads``, where None stands for :func:`default_threads`.

    Raises:
        ConfigError: the number is below 1, or above the number of CPUs that the process may use.
    """
    if threads is None:
        return default_threads()
    limit = len(available_cpus())
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= limit:
        raise ConfigError(
            f"threads is {threads!r}; this process may use {limit} CPUs: give 1 to {limit}, or none"
        )
    return threads


def configure(threads: int) -> None:
    """Sets how many threads parallel loops use that the calling thread starts from now on.

    Raises:
        ConfigError: the calling thread's pool was made by other code, with too few workers; or the process
            was forked from one that had made it.
    """
    configure_pool, num_threads = _pool_functions()
    if _state.pool_process == os.getpid():
        # Other users of TVM in this thread may have changed the number in between.
        if num_threads() == threads:
            return
    elif _state.pool_process is not None:
        raise ConfigError(
            "this process was forked after the model had run, and its worker threads did not come along; "
            "load the model after the fork, in a new thread, or start processes with the 'spawn' method"
        )
    # A thread that may use fewer CPUs than the one that loaded the model shares them among the workers.
    allowed = available_cpus()
    capacity = max(len(allowed), threads)
    cpus = [str(cpu) for cpu in itertools.islice(itertools.cycle(allowed), capacity)]
    configure_pool(_SHARE_CPUS, threads, cpus)
    actual = int(num_threads())
    if actual != threads:
        raise ConfigError(
            f"the TVM worker pool of this thread has room for {actual}, not {threads}: other code made it "
            f"first; run the model in another thread or before that code, or set TVM_NUM_THREADS={threads}"
        )
    _state.pool_process = os.getpid()


@functools.cache
def _pool_functions() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """TVM's functions that configure the calling thread's pool, and that tell how many workers it uses."""
    return global_function("runtime.config_threadpool"), global_function("runtime.NumThreads")
