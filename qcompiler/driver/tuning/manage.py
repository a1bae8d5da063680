"""Keeps tuning logs in order: lists, merges, prunes and exports them."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx

from qcompiler.driver.kernels import register
from qcompiler.driver.tuning import cost
from qcompiler.driver.tuning import log as logs
from qcompiler.driver.tuning.decisions import key, plain
from qcompiler.driver.tuning.log import (
    CHOICES,
    MODEL,
    RECORDS,
    WORKLOADS,
    Choice,
    Key,
    Record,
    TuningLog,
)
from qcompiler.driver.tuning.neutral import NAME, OPERATOR
from qcompiler.driver.tuning.writer import choice_line, create, differences, locked, record_line, replace_file
from qcompiler.errors import TuningLogError
from qcompiler.targets import registry


@dataclass(frozen=True)
class ListedKernel:
    """One kernel of a log.

    Attributes:
        name: what people call it.
        operator: its operator class.
        records: schedules measured.
        seconds: of one run of the schedule in use, for each number of threads, times threads; None without one.
        default_seconds: the same of the default, from the comparison that chose; None before there was one.
        gain: share of the default's time that is saved; None before there was a comparison.
    """

    name: str
    operator: str
    records: int
    seconds: tuple[float, ...] | None
    default_seconds: tuple[float, ...] | None
    gain: float | None


@dataclass(frozen=True)
class Listing:
    """What a log holds.

    Attributes:
        folder: the log.
        key: what it is for.
        kernels: its kernels.
        faults: lines that cannot be read, in words.
    """

    folder: Path
    key: Key
    kernels: tuple[ListedKernel, ...]
    faults: tuple[str, ...]


def listing(folder: Path) -> Listing:
    """What the log in ``folder`` holds.

    Raises:
        TuningLogError: it is no log.
    """
    log = logs.read(folder)
    kernels = []
    for index in range(len(log.workloads)):
        module = log.module(index)
        if module is None or OPERATOR not in module["main"].attrs:
            continue
        attrs = module["main"].attrs
        best, choice = log.best(index), log.choices.get(index)
        kernels.append(
            ListedKernel(
                str(attrs[NAME]), str(attrs[OPERATOR]), len(log.records.get(index, ())),
                None if best is None else best.seconds, None if choice is None else choice.default_seconds,
                None if choice is None else choice.gain,
            )
        )  # fmt: skip
    return Listing(folder, log.key, tuple(kernels), tuple(log.faults))


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: the log.
        kernels: kernels in it.
        records: schedules in it.
        faults: lines of the sources that could not be read, and are not in it.
    """

    folder: Path
    kernels: int
    records: int
    faults: tuple[str, ...]


def merge(folders: Sequence[Path], output: Path) -> Written:
    """Writes a new log with everything in ``folders``; equal schedules of a kernel once, with the smaller time.

    Where two logs chose differently for a kernel, the choice with the larger gain over the default counts. The cost model
    learns from all of them; if that is too little, it is that of the log with the most records.

    Raises:
        TuningLogError: the logs are for different things, or ``output`` is not empty.
    """
    read = [logs.read(folder) for folder in folders]
    for other in read[1:]:
        if other.key != read[0].key:
            raise TuningLogError(
                f"{other.folder} and {read[0].folder} are for different things: {differences(other.key, read[0].key)}; "
                "only logs of one target, schedule version, TVM and set of threads can be merged"
            )
    whole = _Whole(read[0].key)
    for log in read:
        for index in range(len(log.workloads)):
            module = log.module(index)
            if module is not None:
                whole.add(module, log.records.get(index, []), log.choices.get(index))
    largest = max(read, key=lambda log: sum(map(len, log.records.values())))
    written = _write_new(whole, output, largest.folder / MODEL)
    target = registry.resolve(str(whole.key.target["name"]))
    register(target)
    learned = cost.learn(logs.read(output), registry.to_tvm(target, 1))
    if learned is not None:
        replace_file(output / MODEL, learned)
    return Written(output, len(whole.kernels), written, tuple(fault for log in read for fault in log.faults))


def export(folder: Path, output: Path) -> Written:
    """Writes a new log with one schedule a kernel: the one in use.

    Raises:
        TuningLogError: ``folder`` is no log, or ``output`` is not empty.
    """
    log = logs.read(folder)
    whole = _Whole(log.key)
    for index in range(len(log.workloads)):
        module, best = log.module(index), log.best(index)
        if module is not None and best is not None:
            whole.add(module, [best], log.choices.get(index))
    written = _write_new(whole, output, folder / MODEL)
    return Written(output, len(whole.kernels), written, tuple(log.faults))


def prune(folder: Path, keep: int) -> Written:
    """Leaves the ``keep`` fastest schedules of each kernel in a log, and drops lines that cannot be read.

    Raises:
        TuningLogError: ``folder`` is no log, or cannot be written.
    """
    logs.read_key(folder)
    with locked(folder):
        log = logs.read(folder)
        whole = _Whole(log.key)
        for index in range(len(log.workloads)):
            module = log.module(index)
            records = sorted(log.records.get(index, []), key=lambda r: r.score)[:keep]
            choice = log.choices.get(index)
            # Kernels keep their numbers, so that files replaced one after the other go together at any moment.
            if module is None:
                module, records, choice = _placeholder(index), [], None
            whole.append(module, choice)
            whole.add(module, records, choice)
        written = whole.replace_files(folder)
    kernels = sum(log.workloads[index] is not None for index in range(len(log.workloads)))
    return Written(folder, kernels, written, tuple(log.faults))


def _placeholder(index: int) -> tvm.IRModule:
    """A kernel that does nothing, in the place of one that cannot be read."""
    nothing = tirx.PrimFunc([], tirx.Evaluate(tirx.const(index, "int32")))
    return tvm.IRModule({"main": nothing})


class _Whole:
    """A log's content, to be written at once."""

    def __init__(self, key_: Key) -> None:
        self.key = key_
        self.kernels: list[tuple[tvm.IRModule, dict[str, Record], Choice | None]] = []
        self._index = TuningLog(Path(), key_)

    def append(self, module: tvm.IRModule, choice: Choice | None) -> int:
        """Adds a kernel; its number."""
        self.kernels.append((module, {}, choice))
        self._index.workloads.append(
            logs.StoredWorkload(int(tvm_ffi.structural_hash(module)), logs.encode(module))
        )
        return len(self.kernels) - 1

    def add(self, module: tvm.IRModule, records: Sequence[Record], choice: Choice | None) -> None:
        index = self._index.find(module)
        if index is None:
            index = self.append(module, None)
        _, known, chosen = self.kernels[index]
        for record in records:
            name = key(record.trace)
            if name not in known or record.score < known[name].score:
                known[name] = record
        if choice is not None and (chosen is None or choice.gain > chosen.gain):
            self.kernels[index] = (module, known, choice)

    def replace_files(self, folder: Path) -> int:
        """Writes the three files beside the old ones, then puts them in their places; how many records there are."""
        target = _tvm_target(self.key)
        stored = [w for w in self._index.workloads if w is not None]
        records = [
            record_line(index, record, target)
            for index, (_, known, _) in enumerate(self.kernels)
            for record in known.values()
        ]
        choices = [choice_line(index, c) for index, (_, _, c) in enumerate(self.kernels) if c is not None]
        contents: dict[str, list[Any]] = {
            WORKLOADS: [[str(w.stored_hash), w.text] for w in stored],
            RECORDS: records,
            CHOICES: choices,
        }
        try:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as partial:
                for name, values in contents.items():
                    _write_lines(Path(partial) / name, values)
                for name in contents:
                    os.replace(Path(partial) / name, folder / name)
        except OSError as error:
            raise TuningLogError(f"tuning log {folder} cannot be written: {error}") from error
        return len(records)


def _write_lines(path: Path, values: Sequence[object]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for value in values:
            file.write(json.dumps(value, separators=(",", ":")) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write_new(whole: _Whole, output: Path, model: Path) -> int:
    if output.exists() and any(output.iterdir()):
        raise TuningLogError(f"{output} is not empty; give a new folder")
    try:
        output.mkdir(parents=True, exist_ok=True)
        create(output, whole.key)
        with locked(output):
            written = whole.replace_files(output)
        if model.is_file():
            shutil.copyfile(model, output / MODEL)
    except OSError as error:
        raise TuningLogError(f"tuning log {output} cannot be written: {error}") from error
    return written


def _tvm_target(log_key: Key) -> object:
    """What records name as their target."""
    return plain(registry.to_tvm(registry.resolve(str(log_key.target["name"])), 1).export())
