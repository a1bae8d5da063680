"""Reads a tuning log: a folder with a key and MetaSchedule's database, two files of JSON lines.

``key.json`` says what the log is for. ``database_workload.json`` has a kernel a line, ``database_tuning_record.json`` a
measured schedule a line with the number of its kernel; both are in MetaSchedule's own format. ``database_choice.json``
is this project's: the schedule that a comparison with the default settled on, a line a kernel, the last one counting.

A line that cannot be read is reported and skipped, and keeps its number.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi

from qcompiler.driver.kernels import schedule_version
from qcompiler.driver.tuning.decisions import TraceJson
from qcompiler.errors import TuningLogError
from qcompiler.targets.base import Target

FORMAT = 1
KEY = "key.json"
WORKLOADS = "database_workload.json"
RECORDS = "database_tuning_record.json"
CHOICES = "database_choice.json"
MODEL = "cost_model.ubj"

_CODE_FIELDS = (
    "name", "family", "mcpu", "instruction", "vector_bits", "vector_registers", "macs_per_cycle", "half_vector_cost",
    "opt_level",
)  # fmt: skip
"""Fields of a target that decide what its schedules are.

Cache sizes are left out, as ``native`` takes the machine's own, and so are the features that a hypervisor may hide: they
change neither the kernels nor their sketches.
"""


@dataclass(frozen=True)
class Key:
    """What a log is for.

    Attributes:
        target: fields of the target's description that decide what its schedules are.
        schedule_version: version of the target's schedules.
        tvm: version of TVM.
        threads: numbers of threads that candidates were measured at; scores of different ones are not comparable.
        format: version of the log's format.
    """

    target: Mapping[str, Any]
    schedule_version: int
    tvm: str
    threads: tuple[int, ...]
    format: int = FORMAT

    @classmethod
    def of(cls, target: Target, threads: tuple[int, ...]) -> Key:
        """The key of a log that is made now."""
        fields = {name: getattr(target, name) for name in _CODE_FIELDS}
        return cls(fields, schedule_version(target), str(tvm.__version__), tuple(sorted(set(threads))))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True) + "\n"

    def check(self, folder: Path, target: Target) -> None:
        """Refuses a log whose decisions may not fit ``target``.

        Raises:
            TuningLogError: it is of another target, schedule version or TVM.
        """
        now = Key.of(target, self.threads)
        for name, wanted in now.target.items():
            if self.target.get(name) != wanted:
                raise TuningLogError(
                    f"tuning log {folder} is of {self.target.get('name')} with {name} {self.target.get(name)!r}; "
                    f"target {target.name} has {wanted!r}; give the log of this target, or tune for it: qcompile tune"
                )
        for what, has, wanted in (
            ("schedule version", self.schedule_version, now.schedule_version),
            ("TVM", self.tvm, now.tvm),
        ):
            if has != wanted:
                raise TuningLogError(
                    f"tuning log {folder} is of {what} {has}, this is {what} {wanted}; tune into a new folder"
                )


def mean(seconds: Sequence[float]) -> float:
    """One number for the times at all numbers of threads: smaller is better."""
    return sum(seconds) / len(seconds)


@dataclass(frozen=True)
class Record:
    """A measured schedule.

    Attributes:
        trace: its trace.
        seconds: what it was measured at: for each number of threads, seconds of one run times threads.
    """

    trace: TraceJson
    seconds: tuple[float, ...]

    @property
    def score(self) -> float:
        return mean(self.seconds)


@dataclass(frozen=True)
class Choice:
    """What the comparison of the best schedules with the default settled on.

    Attributes:
        trace: the schedule to use.
        seconds: of it, as in a record.
        default_seconds: of the default in the same comparison.
    """

    trace: TraceJson
    seconds: tuple[float, ...]
    default_seconds: tuple[float, ...]

    @property
    def gain(self) -> float:
        """Share of the default's time that is saved."""
        return 1 - mean(self.seconds) / mean(self.default_seconds)


@dataclass
class StoredWorkload:
    """A kernel of a log, decoded when asked for."""

    stored_hash: int
    text: str

    _module: tvm.IRModule | None = field(default=None, repr=False)

    @property
    def module(self) -> tvm.IRModule:
        if self._module is None:
            self._module = decode(self.text)
        return self._module


@dataclass
class TuningLog:
    """A log in memory.

    Attributes:
        folder: where it lies.
        key: what it is for.
        workloads: kernels by number; None for a line that cannot be read.
        records: schedules measured, by number of the kernel, in the order of measuring.
        choices: what to use, by number of the kernel.
        faults: lines that cannot be read, in words.
    """

    folder: Path
    key: Key
    workloads: list[StoredWorkload | None] = field(default_factory=list)
    records: dict[int, list[Record]] = field(default_factory=dict)
    choices: dict[int, Choice] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def find(self, module: tvm.IRModule) -> int | None:
        """The number of a kernel, or None for one that the log does not know."""
        wanted = tvm_ffi.structural_hash(module)
        for index, workload in enumerate(self.workloads):
            if workload is None or workload.stored_hash != wanted:
                continue
            stored = self.module(index)
            if stored is not None and tvm_ffi.structural_equal(stored, module):
                return index
        return None

    def module(self, index: int) -> tvm.IRModule | None:
        """A kernel; None, and a fault, where its text cannot be decoded."""
        workload = self.workloads[index]
        if workload is None:
            return None
        try:
            return workload.module
        except (ValueError, RuntimeError) as error:
            self.faults.append(f"{self.folder / WORKLOADS}:{index + 1}: skipped: {str(error)[:200]}")
            self.workloads[index] = None
            return None

    def best(self, index: int) -> Record | None:
        """The schedule to use for a kernel: the chosen one, or the fastest that was measured."""
        if index in self.choices:
            return Record(self.choices[index].trace, self.choices[index].seconds)
        return min(self.records.get(index, ()), key=lambda r: r.score, default=None)


def read_key(folder: Path) -> Key:
    """The key of the log in ``folder``.

    Raises:
        TuningLogError: there is none, or it cannot be read.
    """
    path = folder / KEY
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise TuningLogError(
                f"tuning log {folder} has format {data['format']}; this qcompiler reads format {FORMAT}; "
                "tune into a new folder"
            )
        return Key(
            dict(data["target"]),
            int(data["schedule_version"]),
            str(data["tvm"]),
            tuple(data["threads"]),
            FORMAT,
        )
    except FileNotFoundError as error:
        raise TuningLogError(
            f"{folder} is no tuning log: it has no {KEY}; qcompile tune makes one"
        ) from error
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise TuningLogError(f"{path} cannot be read: {error!r}; tune into a new folder") from error


def read(folder: Path) -> TuningLog:
    """Reads a log.

    Raises:
        TuningLogError: it has no key that can be read.
    """
    log = read_kernels(folder)
    for number, value in lines(folder / RECORDS, log.faults):
        found = _checked(log, RECORDS, number, _record, value)
        if found is not None and _known(log, RECORDS, number, found[0]):
            log.records.setdefault(found[0], []).append(found[1])
    for number, value in lines(folder / CHOICES, log.faults):
        chosen = _checked(log, CHOICES, number, _choice, value)
        if chosen is not None and _known(log, CHOICES, number, chosen[0]):
            log.choices[chosen[0]] = chosen[1]
    return log


def read_kernels(folder: Path) -> TuningLog:
    """Reads the key and the kernels of a log, without what was measured.

    Raises:
        TuningLogError: it has no key that can be read.
    """
    log = TuningLog(folder, read_key(folder))
    for number, value in lines(folder / WORKLOADS, log.faults):
        log.workloads.append(_checked(log, WORKLOADS, number, _workload, value))
    _trust_hashes(log)
    return log


def lines(path: Path, faults: list[str]) -> Iterator[tuple[int, Any]]:
    """The JSON of each line with its number, from 1; None for a line that is no JSON.

    A line without an end is one that a writer is at, or was killed at; it counts as one that cannot be read.
    """
    if not path.is_file():
        return
    *whole, last = path.read_bytes().split(b"\n")
    for number, line in enumerate([*whole, last] if last else whole, 1):
        try:
            if number > len(whole):
                raise ValueError("the line has no end")
            yield number, json.loads(line)
        except ValueError as error:
            faults.append(f"{path}:{number}: skipped: {error}")
            yield number, None


def encode(module: tvm.IRModule) -> str:
    """A kernel as ``database_workload.json`` has it: MetaSchedule's text, without its indentation."""
    text = json.dumps(json.loads(tvm.ir.save_json(module)), separators=(",", ":")).encode()
    return base64.b64encode(struct.pack("<Q", len(text)) + text).decode()


def decode(text: str) -> tvm.IRModule:
    """The kernel that :func:`encode` wrote.

    Raises:
        ValueError: the text is none.
    """
    return tvm.ir.load_json(base64.b64decode(text, validate=True)[8:].decode())


def _workload(value: Any) -> StoredWorkload:
    stored_hash, text = value
    return StoredWorkload(int(stored_hash), str(text))


def _record(value: Any) -> tuple[int, Record]:
    index, (trace, seconds, _, _) = value
    return int(index), Record(_trace(trace), _seconds(seconds))


def _choice(value: Any) -> tuple[int, Choice]:
    return int(value["workload"]), Choice(
        _trace(value["trace"]), _seconds(value["seconds"]), _seconds(value["default_seconds"])
    )


def _trace(value: Any) -> TraceJson:
    instructions, decisions = value
    if not (isinstance(instructions, list) and isinstance(decisions, list)):
        raise TypeError("a trace is two lists")
    return [instructions, decisions]


def _seconds(value: Any) -> tuple[float, ...]:
    seconds = tuple(float(s) for s in value)
    if not seconds or not all(0 < s < 1e9 for s in seconds):
        raise ValueError(f"{value} are no seconds")
    return seconds


def _checked(log: TuningLog, name: str, number: int, parse: Any, value: Any) -> Any:
    """``parse(value)``; None, and a fault, if it cannot be read. None itself was reported before."""
    if value is None:
        return None
    try:
        return parse(value)
    except (TypeError, ValueError, KeyError, IndexError) as error:
        log.faults.append(f"{log.folder / name}:{number}: skipped: {error!r}")
        return None


def _known(log: TuningLog, name: str, number: int, index: int) -> bool:
    known = 0 <= index < len(log.workloads) and log.workloads[index] is not None
    if not known:
        log.faults.append(f"{log.folder / name}:{number}: skipped: no kernel can be read on line {index + 1}")
    return known


def _trust_hashes(log: TuningLog) -> None:
    """Recomputes the hashes if the first one is another here: TVM does not promise that they are the same everywhere."""
    for index, workload in enumerate(log.workloads):
        module = log.module(index)
        if workload is not None and module is not None:
            found = int(tvm_ffi.structural_hash(module))
            if found == workload.stored_hash:
                return
            workload.stored_hash = found
