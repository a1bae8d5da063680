"""TVM's RPC tracker and servers, on the loopback interface."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qcompiler.driver.tuning.boards import devices
from qcompiler.errors import TuningError

KEY = "test-board"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A TVM program in a process group of its own, which has ended when the block has."""
    command = [sys.executable, "-m", f"tvm.exec.{module}", "--host", "127.0.0.1", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def until_known(tracker: tuple[str, int], count: int) -> None:
    """Waits until the tracker knows ``count`` devices."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            if len(devices(tracker, KEY)) >= count:
                return
        except TuningError:
            pass  # it is not up yet
        time.sleep(0.3)
    raise AssertionError(f"the tracker does not know {count} devices after a minute")
