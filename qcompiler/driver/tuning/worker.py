"""What the worker processes call; only functions that can be named from another process, and plain data, are here."""

from __future__ import annotations

import os
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

    return trial.run(job, _HereOnGpu() if job.gpu else _Here())


SESSION_LOST = "session lost"
"""What the message of an error begins with that may be the device's fault: it may be tried on another."""


def run_there(job: Any, url: str, port: int, key: str, timeout: int) -> Any:
    """Checks and times libraries on a device.

    Args:
        job: the libraries.
        url: the device's host.
        port: the device's port.
        key: the session's key, which the tracker gave.
        timeout: seconds that the device gives the session.

    Raises:
        RuntimeError: the session ended before there was an answer.
    """
    from tvm import rpc

    from qcompiler.driver.tuning import trial

    try:
        session = rpc.connect(url, port, key, timeout)
        board = _ThereOnGpu(session) if job.gpu else _There(session)
        return trial.run(job, board)
    except _RefusedError as error:
        raise RuntimeError(str(error)) from error
    except Exception as error:  # TVM raises errors of several classes for a connection that breaks
        raise RuntimeError(f"{SESSION_LOST}: {str(error).strip().splitlines()[-1:]}") from error


class _RefusedError(Exception):
    """The device is fine, and cannot do what is asked."""


class _There:
    """A device as a machine."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.device = session.cpu()

    def load(self, library: str) -> Any:
        self._session.upload(library)
        return self._session.load_module(os.path.basename(library))

    def use_threads(self, threads: int) -> None:
        self._session.get_function("runtime.config_threadpool")(1, threads)
        actual = int(self._session.get_function("runtime.NumThreads")())
        if actual != threads:
            raise _RefusedError(
                f"the device has workers for {actual} threads, not {threads}; start its server with "
                f"TVM_NUM_THREADS={threads}"
            )


class _ThereOnGpu(_There):
    """The first GPU of a device as a machine."""

    def __init__(self, session: Any) -> None:
        super().__init__(session)
        self.device = session.cuda()
        if not self.device.exist:
            raise _RefusedError(
                "the device has no GPU, or its TVM runtime has no driver to reach it; look at what nvidia-smi says there"
            )

    def use_threads(self, threads: int) -> None:
        """A GPU's threads are the kernel's own."""


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


class _HereOnGpu(_Here):
    """The first GPU of this machine as a machine."""

    def __init__(self) -> None:
        import tvm

        self.device = tvm.cuda()

    def use_threads(self, threads: int) -> None:
        """A GPU's threads are the kernel's own."""
