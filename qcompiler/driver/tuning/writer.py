"""Writes a tuning log: any number of processes append to one folder, and none of them can damage it when it is killed.

Every line is written, and brought to the disk, under a lock on ``key.json``. A line that a killed process left without
its end is ended by the next writer, so that it counts as one line that cannot be read, and the numbers of the lines, which
records refer to kernels by, stay right.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi

from qcompiler.driver.bundle import sync_folder
from qcompiler.driver.tuning import log as logs
from qcompiler.driver.tuning.decisions import plain
from qcompiler.driver.tuning.log import (
    CHOICES,
    KEY,
    MODEL,
    RECORDS,
    WORKLOADS,
    Choice,
    Key,
    Record,
    TuningLog,
)
from qcompiler.errors import TuningLogError


class LogWriter:
    """Appends to the log in ``folder``, which is made if it is not there.

    Args:
        folder: the log's folder.
        key: what the log must be for.
        tvm_target: the target that records name.

    Raises:
        TuningLogError: the folder holds a log for something else, or cannot be written.
    """

    def __init__(self, folder: Path, key: Key, tvm_target: tvm.target.Target) -> None:
        self.folder = folder
        self._kernels: tuple[tuple[int, int], TuningLog] | None = None
        self._target = plain(tvm_target.export())
        try:
            folder.mkdir(parents=True, exist_ok=True)
            create(folder, key)
        except OSError as error:
            raise TuningLogError(
                f"tuning log {folder} cannot be written: {error}; give another: --log"
            ) from error
        there = logs.read_key(folder)
        if there != key:
            raise TuningLogError(
                f"tuning log {folder} is for something else: {differences(there, key)}; give another: --log"
            )

    def read(self) -> TuningLog:
        """The log as it is now."""
        with locked(self.folder):
            return logs.read(self.folder)

    def append(self, module: tvm.IRModule, record: Record) -> None:
        """Adds a measured schedule of a kernel, and the kernel if it is new."""
        with locked(self.folder):
            index = self._index(module)
            append_line(self.folder / RECORDS, record_line(index, record, self._target))

    def choose(self, module: tvm.IRModule, choice: Choice) -> None:
        """Sets the schedule to use for a kernel."""
        with locked(self.folder):
            append_line(self.folder / CHOICES, choice_line(self._index(module), choice))

    def save_model(self, data: bytes) -> None:
        """Puts the cost model in its place, as a whole file."""
        replace_file(self.folder / MODEL, data)

    def _index(self, module: tvm.IRModule) -> int:
        """The number of a kernel's line, which is written if there is none; the lock is held."""
        log = self._known()
        index = log.find(module)
        if index is not None:
            return index
        wanted = int(tvm_ffi.structural_hash(module))
        append_line(self.folder / WORKLOADS, [str(wanted), logs.encode(module)])
        return len(log.workloads)

    def _known(self) -> TuningLog:
        """The log's kernels; read again only when their file is another one, as it has megabytes."""
        path = self.folder / WORKLOADS
        state = path.stat() if path.is_file() else None
        version = (state.st_ino, state.st_size) if state else (0, 0)
        if self._kernels is None or self._kernels[0] != version:
            self._kernels = version, logs.read_kernels(self.folder)
        return self._kernels[1]


def choice_line(index: int, choice: Choice) -> dict[str, Any]:
    """A line of ``database_choice.json``."""
    return {
        "workload": index, "trace": list(choice.trace), "seconds": list(choice.seconds),
        "default_seconds": list(choice.default_seconds),
    }  # fmt: skip


def record_line(index: int, record: Record, tvm_target: Any) -> list[Any]:
    """A line of ``database_tuning_record.json``."""
    return [index, [list(record.trace), list(record.seconds), tvm_target, None]]


def create(folder: Path, key: Key) -> None:
    """Writes the key, unless there is one: a whole file at once, which only one of several processes can make."""
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".key-", encoding="utf-8") as file:
        file.write(key.to_json())
        file.flush()
        os.fsync(file.fileno())
        os.chmod(file.name, 0o644)
        try:
            os.link(file.name, folder / KEY)
        except FileExistsError:
            return
    sync_folder(folder)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the log's lock."""
    with open(folder / KEY, encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def append_line(path: Path, value: Any) -> None:
    """Appends one line and brings it to the disk; ends a line that another process left open. The lock is held."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        size = os.fstat(descriptor).st_size
        text = json.dumps(value, separators=(",", ":")) + "\n"
        if size and os.pread(descriptor, 1, size - 1) != b"\n":
            text = "\n" + text
        data = text.encode()
        while data:
            data = data[os.write(descriptor, data) :]
        os.fsync(descriptor)
    except OSError as error:
        raise TuningLogError(
            f"{path} cannot be written: {error}; make room, and start again: nothing is lost"
        ) from error
    finally:
        os.close(descriptor)


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file beside ``path``, then puts it there."""
    try:
        with tempfile.NamedTemporaryFile(
            "wb", dir=path.parent, prefix=f".{path.name}-", delete=False
        ) as file:
            file.write(data)
        os.chmod(file.name, 0o644)
        os.replace(file.name, path)
    except OSError as error:
        raise TuningLogError(f"{path} cannot be written: {error}") from error


def differences(there: Key, wanted: Key) -> str:
    """In what two keys differ, in words."""
    found = [
        f"{name} {has!r}, not {needs!r}"
        for name, has, needs in (
            *((n, there.target.get(n), wanted.target.get(n)) for n in wanted.target),
            ("schedule version", there.schedule_version, wanted.schedule_version),
            ("TVM", there.tvm, wanted.tvm),
            ("threads", there.threads, wanted.threads),
        )
        if has != needs
    ]
    return ", ".join(found) or "another key"
