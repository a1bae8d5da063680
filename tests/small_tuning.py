"""Small convolutions to tune, and a fleet that measures nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from qc_modules import const, make
from tvm import relax

from qcompiler import operators
from qcompiler.config import TuneConfig
from qcompiler.driver.kernels import kernels
from qcompiler.driver.tuning import light
from qcompiler.driver.tuning.log import Key
from qcompiler.driver.tuning.tasks import Task, extract
from qcompiler.driver.tuning.trial import Build, Run, Timing
from qcompiler.driver.tuning.tune import Tuned, tune_tasks
from qcompiler.driver.tuning.writer import LogWriter
from qcompiler.passes import pipeline
from qcompiler.targets import registry
from qcompiler.targets.base import Target

light.keep_out()

THREADS = (1,)

TARGET: Target = registry.resolve("native")

TVM_TARGET: tvm.target.Target = registry.to_tvm(TARGET, 1)


def convolution(x: relax.Expr, channels: int, out: int, kernel: int, zero_point: int) -> relax.Expr:
    """``qc.conv2d`` with random weights; NCHW."""
    rng = np.random.default_rng(out)
    weight = rng.integers(-127, 128, (out, channels, kernel, kernel)).astype(np.int8)
    bias = rng.integers(-1000, 1000, out).astype(np.int32)
    multiplier = np.full(out, 1e-3, np.float32)
    return operators.call(
        "qc.conv2d", [x, const(weight), const(bias), const(multiplier)], strides=[1, 1], padding=[0] * 4,
        dilation=[1, 1], groups=1, layout="NCHW", pad_value=0, zero_point=zero_point, lo=0, hi=255, residual_shift=0,
        out_dtype="uint8", accumulator_bound=int(255 * 127 * channels * kernel * kernel + 1000),
    )  # fmt: skip


def module(width: int = 12, *, zero_points: tuple[int, int] = (3, 7)) -> tvm.IRModule:
    """Two equal convolutions but for a constant, and another one."""

    def build(emit: Callable[..., Any], x: relax.Var) -> tuple[relax.Expr, ...]:
        one = emit(convolution(x, 16, 64, 1, zero_points[0]))
        two = emit(convolution(x, 16, 64, 1, zero_points[1]))
        return one, two, emit(convolution(x, 16, 64, 3, 5))

    return make(build, ((1, 16, 6, width), "uint8"))


def physical(mod: tvm.IRModule, scheduler: Any = None, target: Target = TARGET) -> pipeline.Physical:
    options = {} if scheduler is None else {"scheduler": scheduler}
    return pipeline.to_physical(
        mod, target, registry.to_tvm(target, 1), dump=pipeline.Dump(None), **options, **kernels(target)
    )


@functools.cache
def tasks() -> tuple[Task, ...]:
    """The kernels of :func:`module`: one of two layers, and one of one."""
    return tuple(extract(physical(module())))


def writer(folder: Path, threads: tuple[int, ...] = THREADS) -> LogWriter:
    return LogWriter(folder, Key.of(TARGET, threads), TVM_TARGET)


class FakeFleet:
    """Takes every candidate as built; ``time_of`` says its seconds, or its fault.

    Attributes:
        runs: traces in the order they were run.
    """

    def __init__(self, time_of: Callable[[Any, int], float | Timing]) -> None:
        self.time_of = time_of
        self.traces: dict[str, Any] = {}
        self.runs: list[Any] = []
        self.closed = False

    def build(self, jobs: Sequence[Build]) -> list[str | None]:
        for job in jobs:
            self.traces[job.library] = job.trace
        return [None] * len(jobs)

    def run(self, jobs: Sequence[Run]) -> list[list[Timing]]:
        results = []
        for job in jobs:
            timings = []
            for library in job.libraries:
                self.runs.append(self.traces[library])
                found = self.time_of(self.traces[library], len(self.runs))
                timings.append(found if isinstance(found, Timing) else Timing((found,) * len(job.threads)))
            results.append(timings)
        return results

    def close(self) -> None:
        self.closed = True


def tune(folder: Path, fleet: Any, say: Callable[[str], None] = lambda line: None, **options: Any) -> Tuned:
    """Tunes :func:`tasks` into ``folder``."""
    settings = TuneConfig(**{"trials": 6, "batch": 2, "min_gain": 0.0, **options})
    return tune_tasks(tasks(), TARGET, TVM_TARGET, writer(folder), lambda: fleet, THREADS, settings, say)
