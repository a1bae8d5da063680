"""Schedules a model's kernels with what was tuned."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tvm
import tvm_ffi

from qcompiler.config import CompileConfig
from qcompiler.driver.tuning import log as logs
from qcompiler.driver.tuning.decisions import TraceJson, extents, fit
from qcompiler.driver.tuning.log import KEY, MODEL, TuningLog
from qcompiler.driver.tuning.neutral import OPERATOR, neutral
from qcompiler.errors import TuningLogError
from qcompiler.targets.base import Target
from qcompiler.targets.workload import Scheduled, Workload, default_schedule, finish, sketched

SHIPPED = Path(__file__).resolve().parents[2] / "tuning_logs"
"""The logs that come with the compiler, a folder a target."""

log = logging.getLogger(__name__)


def log_folder(folder: Path, target: Target) -> Path:
    """``folder`` if it is a log, else the log of ``target`` in it."""
    return folder if (folder / KEY).is_file() else folder / target.name


def open_logs(target: Target, config: CompileConfig) -> list[TuningLog]:
    """The logs to compile with, the user's first.

    Raises:
        TuningLogError: the user's log is missing, or is for something else.
    """
    found = []
    if config.log is not None:
        given = logs.read(log_folder(config.log, target))
        given.key.check(given.folder, target)
        found.append(given)
    shipped = SHIPPED / target.name
    if config.tuned and (shipped / KEY).is_file():
        try:
            logs.read_key(shipped).check(shipped, target)
            found.append(logs.read(shipped))
        except TuningLogError as error:
            log.warning("%s; kernels get their default schedules", error)
    for one in found:
        for fault in one.faults:
            log.warning("%s", fault)
    return found


@dataclass(frozen=True)
class _Known:
    """A tuned kernel that decisions may be taken from."""

    shapes: list[list[int]]
    trace: TraceJson
    folder: Path


class TunedScheduler:
    """Gives every kernel its best schedule in the logs; one that no log knows, that of the nearest kernel which is.

    The nearest is the kernel of the same operator class whose tensors' extents differ least, in the logarithm. Its
    decisions are used where the log's cost model ranks them above the default.

    Attributes:
        threads: numbers of threads that the schedules used were tuned for.
    """

    def __init__(self, found: Sequence[TuningLog], tvm_target: tvm.target.Target) -> None:
        self.logs = found
        self.threads: set[int] = set()
        self._target = tvm_target
        self._known: dict[str, list[_Known]] | None = None
        self._models: dict[Path, object] = {}

    def __call__(self, workload: Workload) -> Scheduled:
        known = neutral(workload)
        for one in self.logs:
            index = one.find(known.module)
            best = None if index is None else one.best(index)
            if best is None:
                continue
            fitted = fit(workload, best.trace)
            if fitted is None or not fitted.exact:
                log.warning(
                    "the schedule of %s in %s does not fit its sketches any more; it gets the default; tune it again",
                    workload.name, one.folder,
                )  # fmt: skip
                return default_schedule(workload)
            self.threads.update(one.key.threads)
            return Scheduled(finish(fitted.schedule), "tuned")
        return self._transferred(workload, known) or default_schedule(workload)

    def _transferred(self, workload: Workload, known: Workload) -> Scheduled | None:
        shapes = _shapes(known.module)
        near = [k for k in self._tuned().get(workload.operator, ()) if _ranks(k.shapes) == _ranks(shapes)]
        if not near:
            return None
        nearest = min(near, key=lambda k: distance(k.shapes, shapes))
        fitted = fit(known, nearest.trace)
        if fitted is None:
            return None
        default = sketched(known, 0)
        if tvm_ffi.structural_equal(default.mod, fitted.schedule.mod):
            return None
        from qcompiler.driver.tuning.cost import SavedModel

        path = nearest.folder / MODEL
        model = self._models.get(path)
        if model is None:
            model = self._models[path] = SavedModel(path, self._target)
        assert isinstance(model, SavedModel)
        before, after = model.scores([default, fitted.schedule])
        if after <= before:
            return None
        real = fit(workload, nearest.trace)
        assert real is not None
        log.info(
            "%s takes the decisions of a similar kernel: score %.3f, default %.3f",
            workload.name,
            after,
            before,
        )
        return Scheduled(finish(real.schedule), "transferred")

    def _tuned(self) -> dict[str, list[_Known]]:
        """The kernels of the logs that have a cost model, by operator class; decoded at the first question."""
        if self._known is None:
            self._known = {}
            for one in self.logs:
                if not (one.folder / MODEL).is_file():
                    continue
                for index in range(len(one.workloads)):
                    best, module = one.best(index), one.module(index)
                    if best is None or module is None or OPERATOR not in module["main"].attrs:
                        continue
                    known = _Known(_shapes(module), best.trace, one.folder)
                    self._known.setdefault(str(module["main"].attrs[OPERATOR]), []).append(known)
        return self._known


def distance(a: Sequence[Sequence[int]], b: Sequence[Sequence[int]]) -> float:
    """How far two kernels' extents are from each other: the sum of the magnitudes of their ratios' logarithms."""
    return sum(abs(math.log(x / y)) for x, y in zip(extents(a), extents(b), strict=True))


def _shapes(module: tvm.IRModule) -> list[list[int]]:
    return [[int(d) for d in buffer.shape] for buffer in module["main"].params]


def _ranks(shapes: Sequence[Sequence[int]]) -> list[int]:
    return [len(shape) for shape in shapes]
