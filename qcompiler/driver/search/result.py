"""What a search is asked for, and what it finds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from qcompiler.config import Precision
from qcompiler.driver.search.accuracy import Criterion
from qcompiler.errors import ConfigError
from qcompiler.runtime.manifest import OptimizationRecord

PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class SearchConfig:
    """What a plan must keep.

    Attributes:
        max_drop: the largest drop, in percentage points: of top-1 accuracy against the float model where there are
            labels, else of predictions that differ from the float model's; or None.
        max_latency: seconds of a run, at most; or None.
        threads: threads of a run; None for all physical cores.
        points: plans of the front, about.
        limit: samples of the data to use, at most.
        precisions: to choose from, int8 and fp32 among them; None for these two and those of 16 bits whose
            multiplications the target has instructions for.
    """

    max_drop: float | None = None
    max_latency: float | None = None
    threads: int | None = None
    points: int = 16
    limit: int | None = None
    precisions: tuple[Precision, ...] | None = None

    def __post_init__(self) -> None:
        if self.max_drop is None and self.max_latency is None:
            raise ConfigError("a search needs a promise: give max_drop, max_latency or both")
        if self.max_drop is not None and not 0 <= self.max_drop <= 100:
            raise ConfigError(f"max_drop is {self.max_drop}; it is in percentage points, 0 to 100")
        if self.max_latency is not None and not self.max_latency > 0:
            raise ConfigError(f"max_latency is {self.max_latency} s; it must be above 0")
        if self.points < 2:
            raise ConfigError(f"points is {self.points}; it must be at least 2")
        for precision in self.precisions or ():
            if precision not in PRECISIONS:
                raise ConfigError(f"precisions: {precision!r} is none; allowed: {', '.join(PRECISIONS)}")
        if self.precisions is not None and not {"int8", "fp32"} <= set(self.precisions):
            raise ConfigError(
                f"precisions is {','.join(self.precisions)}; int8 and fp32 must be among them: what is no convolution or "
                "linear layer has no others"
            )


@dataclass(frozen=True)
class LayerCost:
    """What was measured of a layer.

    Attributes:
        name: its name in plans.
        kind: class of its kernel.
        seconds: time of its kernel, by precision.
        sqnr_db: ratio of the model's outputs to the noise that this layer alone adds, by precision; fp32 adds none.
        drop: what this layer alone costs in accuracy, as a fraction, by precision; None without classes.
        precision: in the plan that was chosen.
    """

    name: str
    kind: str
    seconds: Mapping[Precision, float]
    sqnr_db: Mapping[Precision, float]
    drop: Mapping[Precision, float | None]
    precision: Precision


@dataclass(frozen=True)
class Point:
    """A plan, and what is promised of it.

    Attributes:
        float_layers: the layers in float with their precision; all others are in int8.
        seconds: of a run, by the costs of layers and conversions.
        sqnr_db: of the outputs, by the sum of the layers' noise.
        drop: of the whole plan, simulated, as a fraction; None without classes.
    """

    float_layers: Mapping[str, Precision]
    seconds: float
    sqnr_db: float
    drop: float | None


@dataclass(frozen=True)
class Attempt:
    """A plan that was compiled and measured.

    Attributes:
        promised: the plan.
        seconds: of a run of the bundle, measured.
        drop: measured from the bundle's outputs.
        sqnr_db: of the bundle's outputs against the float model's, measured.
        missed: which promise was missed, or None.
    """

    promised: Point
    seconds: float
    drop: float | None
    sqnr_db: float
    missed: str | None


@dataclass(frozen=True)
class SearchResult:
    """What :func:`search` found.

    Attributes:
        criterion: what a drop is; None for a model without classes.
        float_top1: top-1 accuracy of the float model; None without labels.
        samples: samples that accuracy was measured on.
        threads: threads of a run.
        uniform_seconds: a run with all layers in one precision, measured, by the precisions that were tried.
        layers: the layers, in the order they run.
        front: plans of which none is better than another in both time and noise, the fastest first.
        attempts: the plans that were compiled and measured, in order; the last one is chosen.
        plan: the chosen plan's file.
        remarks: for each float of 16 bits that the chosen plan does not have, why.
        optimizations: what was tried to lower the error of quantization, with all layers in int8.
    """

    criterion: Criterion | None
    float_top1: float | None
    samples: int
    threads: int
    uniform_seconds: Mapping[Precision, float]
    layers: tuple[LayerCost, ...]
    front: tuple[Point, ...]
    attempts: tuple[Attempt, ...]
    plan: Path
    remarks: tuple[str, ...]
    optimizations: tuple[OptimizationRecord, ...]

    @property
    def chosen(self) -> Attempt:
        return self.attempts[-1]
