"""Where candidates are built and run: worker processes of this machine.

A candidate that crashes or hangs takes its worker process with it, and the next one gets a new process. Candidates are
built several at a time, and run one at a time when nothing is built, so that they have the machine for themselves.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from tvm.support.popen_pool import PopenPoolExecutor

from qcompiler.driver.tuning import worker
from qcompiler.driver.tuning.trial import Build, Run, Timing
from qcompiler.targets.base import Target

BUILD_TIMEOUT = 60.0
"""Seconds after which a candidate that is being built is given up."""

RUN_TIMEOUT = 60.0
"""Seconds after which a candidate that runs is given up."""


class LocalFleet:
    """Builds and runs on this machine.

    Args:
        target: the target, whose intrinsics the workers need.
        jobs: candidates that are built at once.
        run_timeout: seconds that one candidate may run.
    """

    def __init__(self, target: Target, jobs: int, run_timeout: float = RUN_TIMEOUT) -> None:
        self._builders = pool(jobs, BUILD_TIMEOUT, target)
        self._runner = pool(1, run_timeout, target)

    def build(self, jobs: Sequence[Build]) -> list[str | None]:
        """Makes libraries; for each, what went wrong, or None."""
        return [fault for _, fault in outcomes([self._builders.submit(worker.build, job) for job in jobs])]

    def run(self, jobs: Sequence[Run]) -> list[list[Timing]]:
        """Checks and times the libraries of each job."""
        futures = [self._runner.submit(worker.run_here, job) for job in jobs]
        return [
            [Timing(fault=fault)] * len(job.libraries) if fault is not None else value
            for job, (value, fault) in zip(jobs, outcomes(futures), strict=True)
        ]

    def close(self) -> None:
        """Ends the worker processes."""
        self._builders.shutdown()
        self._runner.shutdown()


def pool(workers: int, timeout: float, target: Target) -> Any:
    """Worker processes that keep the library of tensor intrinsics out; what candidates print is not shown."""
    return PopenPoolExecutor(
        max_workers=workers, timeout=timeout, initializer=worker.start, initargs=(target,),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def outcomes(futures: Sequence[Future[Any]]) -> Iterator[tuple[Any, str | None]]:
    """What each call gave, and what went wrong in it or None."""
    for future in futures:
        try:
            yield future.result(), None
        except TimeoutError:
            yield None, "it took too long"
        except ChildProcessError:
            yield None, "its process died"
        except Exception as error:  # a worker raises whatever the compiler or the candidate raised
            yield None, last_line(error)


def last_line(error: BaseException) -> str:
    """The last line of an error, which says what happened; the ones before are its traceback."""
    text = str(error).strip().splitlines()
    return (text[-1] if text else type(error).__name__)[:300]


@contextmanager
def closing(make: Callable[[], Any]) -> Iterator[Any]:
    """A fleet that is closed whatever happens."""
    fleet = make()
    try:
        yield fleet
    finally:
        fleet.close()
