"""Runs candidates on devices behind TVM's RPC tracker, several at once; they are built on this machine.

Each job is one session on one device: the library and the arguments are uploaded, checked and timed there. A session that
ends before it has an answer is reported with the device's address, and the job goes to another device; after a few of
them the candidate is taken to be the fault.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from tvm import rpc
from tvm.rpc import base

from qcompiler.driver.tuning import worker
from qcompiler.driver.tuning.fleet import BUILD_TIMEOUT, last_line, outcomes, pool
from qcompiler.driver.tuning.trial import Build, Run, Timing
from qcompiler.driver.tuning.tune import Say
from qcompiler.errors import TuningError
from qcompiler.targets.base import Target

ATTEMPTS = 3
"""Sessions that a candidate may lose before it counts as failed."""

WAIT = 60.0
"""Seconds to wait for a device that is free."""

LOST = worker.SESSION_LOST
"""What the fault of a lost session begins with."""


class BoardFleet:
    """Builds on this machine and runs on devices.

    Args:
        target: the target, whose intrinsics the builders need.
        jobs: candidates that are built at once.
        tracker: host and port of the tracker.
        key: the devices' key at the tracker.
        timeout: seconds that a device has for one job.
        say: gets a line about every device that fails.

    Raises:
        TuningError: there is no tracker, or it knows no such device.
    """

    def __init__(
        self, target: Target, jobs: int, tracker: tuple[str, int], key: str, timeout: float, say: Say
    ) -> None:
        self._tracker, self._key, self._timeout, self._say = tracker, key, timeout, say
        self._lock = Lock()
        self._failures: dict[str, int] = {}
        addresses = devices(tracker, key)
        if not addresses:
            raise TuningError(
                f"the tracker at {_name(tracker)} knows no device with the key {key!r}; start one: "
                f"python -m tvm.exec.rpc_server --tracker {_name(tracker)} --key {key}"
            )
        say(f"{len(addresses)} devices: {', '.join(sorted(addresses))}")
        self._builders = pool(jobs, BUILD_TIMEOUT, target)
        # The process that talks to a device outlives the device's own limit, so that it can tell what happened.
        self._sessions = pool(len(addresses), timeout + 10, target)
        self._threads = ThreadPoolExecutor(len(addresses))

    def build(self, jobs: Sequence[Build]) -> list[str | None]:
        """Makes libraries; for each, what went wrong, or None."""
        return [fault for _, fault in outcomes([self._builders.submit(worker.build, job) for job in jobs])]

    def run(self, jobs: Sequence[Run]) -> list[list[Timing]]:
        """Checks and times the libraries of each job, on as many devices at once as there are."""
        return list(self._threads.map(self._run, jobs))

    def _run(self, job: Run) -> list[Timing]:
        fault = ""
        for _ in range(ATTEMPTS):
            url, port, session_key = self._request()
            address = f"{url}:{port}"
            future = self._sessions.submit(worker.run_there, job, url, port, session_key, int(self._timeout))
            try:
                timings: list[Timing] = future.result()
                return timings
            except (TimeoutError, ChildProcessError) as error:
                fault = last_line(error) or type(error).__name__
            except Exception as error:  # a worker raises whatever the session or the candidate raised
                fault = last_line(error)
                if LOST not in str(error):
                    return [Timing(fault=fault)] * len(job.libraries)
            with self._lock:
                self._failures[address] = self._failures.get(address, 0) + 1
            self._say(f"device {address} failed: {fault}; its job goes to the next device that is free")
        return [Timing(fault=f"{ATTEMPTS} sessions ended without an answer, the last one: {fault}")] * len(
            job.libraries
        )

    def _request(self) -> tuple[str, int, str]:
        """Host, port and key of a session on a device that is free."""
        try:
            with _connected(self._tracker) as connection:
                connection.settimeout(WAIT)
                base.sendjson(connection, [base.TrackerCode.REQUEST, self._key, "", 1])
                code, answer = base.recvjson(connection)
        except TimeoutError as error:
            raise TuningError(
                f"no device with the key {self._key!r} became free in {WAIT:g} s at the tracker {_name(self._tracker)}; "
                f"{self._report()}"
            ) from error
        except (OSError, ValueError) as error:
            raise TuningError(f"the tracker at {_name(self._tracker)} does not answer: {error}") from error
        if code != base.TrackerCode.SUCCESS:
            raise TuningError(f"the tracker at {_name(self._tracker)} refuses a request: {answer}")
        url, port, session_key = answer
        return str(url), int(port), str(session_key)

    def _report(self) -> str:
        if not self._failures:
            return "start more devices, or wait for others to be done"
        failed = ", ".join(f"{address} {count} times" for address, count in sorted(self._failures.items()))
        return f"devices that failed: {failed}; what was measured is kept, so start them again and run the same command"

    def close(self) -> None:
        """Ends the worker processes."""
        self._threads.shutdown(cancel_futures=True)
        self._builders.shutdown()
        self._sessions.shutdown()


def devices(tracker: tuple[str, int], key: str) -> list[str]:
    """Addresses of the devices that the tracker knows by ``key``.

    Raises:
        TuningError: the tracker does not answer.
    """
    try:
        with socket.create_connection(tracker, timeout=10):
            pass
        session = rpc.connect_tracker(*tracker)
    except (OSError, RuntimeError) as error:
        raise TuningError(
            f"no tracker answers at {_name(tracker)}: {error}; start one: python -m tvm.exec.rpc_tracker "
            f"--host 0.0.0.0 --port {tracker[1]}"
        ) from error
    try:
        known: list[dict[str, Any]] = session.summary()["server_info"]
    finally:
        session.close()
    return [f"{item['addr'][0]}:{item['addr'][1]}" for item in known if item["key"] == f"server:{key}"]


def _connected(tracker: tuple[str, int]) -> socket.socket:
    connection = socket.create_connection(tracker, timeout=10)
    connection.sendall(struct.pack("<i", base.RPC_TRACKER_MAGIC))
    (magic,) = struct.unpack("<i", base.recvall(connection, 4))
    if magic != base.RPC_TRACKER_MAGIC:
        raise OSError("it is no RPC tracker")
    return connection


def _name(tracker: tuple[str, int]) -> str:
    return f"{tracker[0]}:{tracker[1]}"
