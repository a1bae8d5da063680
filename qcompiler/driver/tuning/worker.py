"""What the worker processes call; only functions that can be named from another process, and plain data, are here."""

from __future__ import annotations

from typing import Any

from qcompiler.driver.tuning import light
from qcompiler.targets.base import Target


def start(target: Target) -> None:
    """Prepares a process: nothing slow is imported, and the schedules' intrinsics are known."""
    light.keep_out()
    from qcompiler.driver.kernels import register

    register(target)


def stays_light() -> bool:
    """Whether this process has kept out what is slow to import."""
    return light.is_out()


def build(job: Any) -> None:
    """Makes the library of a candidate."""
    from qcompiler.driver.tuning import trial

    trial.build(job)


def run_here(job: Any) -> Any:
    """Checks and times libraries in this process."""
    from qcompiler.driver.tuning import trial

    return trial.run(job, _Here())


class _Here:
    """This process as a machine."""

    def __init__(self) -> None:
        import tvm

        self.device = tvm.cpu()

    def load(self, library: str) -> Any:
        import tvm

        return tvm.runtime.load_module(library)

    def use_threads(self, threads: int) -> None:
        from qcompiler.runtime.threads import configure

        configure(threads)
