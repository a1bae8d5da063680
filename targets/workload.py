"""A kernel before it is scheduled, with the space of its schedules.

A sketch is a function that schedules the kernel and draws its numbers, such as tile sizes, with the sampling
instructions of a TensorIR schedule. Every sample is given the decision that the target's description implies, so a
sketch as it stands is a complete schedule; its trace with other decisions is another one. Tuning searches the
sketches' traces; without tuning, the first sketch is the schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import tvm
from tvm import tirx
from tvm.s_tir import Schedule

OPAQUE = 8
"""Relax's pattern of an operator that is never fused."""

Origin = Literal["tuned", "transferred", "default"]
"""Where a kernel's schedule comes from: a record of this kernel, one of a similar kernel, or the description."""

Generate = Callable[[Mapping[str, Any]], tirx.PrimFunc]

Sketch = Callable[[Schedule], None]


@dataclass(frozen=True)
class Workload:
    """A kernel to schedule.

    Attributes:
        operator: its operator class: decisions are transferred between kernels of one class only.
        name: a short description for people, as ``conv2d 1x56x56x64 -> 64, 3x3``; not unique.
        function: the kernel, unscheduled.
        sketches: its schedules; the first is the default.
        tunable: there is something to choose: a sample or a second sketch.
    """

    operator: str
    name: str
    function: tirx.PrimFunc
    sketches: tuple[Sketch, ...]
    tunable: bool = True

    @property
    def module(self) -> tvm.IRModule:
        """The kernel in a module of its own, as ``main``."""
        return tvm.IRModule({"main": self.function})


@dataclass(frozen=True)
class Scheduled:
    """A scheduled kernel.

    Attributes:
        function: ready to be placed in a Relax module.
        origin: where the schedule comes from.
    """

    function: tirx.PrimFunc
    origin: Origin


Scheduler = Callable[[Workload], Scheduled]


def sketched(workload: Workload, index: int) -> Schedule:
    """The schedule of sketch ``index`` with its own decisions."""
    sch = Schedule(workload.module)
    workload.sketches[index](sch)
    return sch


def default_schedule(workload: Workload) -> Scheduled:
    """The schedule that needs no tuning."""
    return Scheduled(finish(sketched(workload, 0)), "default")


GENERATOR = "qc.generator"
"""Attribute of a function whose kernel is generated from the annotations of its block ``out``: the generator's name."""

_GENERATORS: dict[str, Generate] = {}


def generator(name: str) -> Callable[[Generate], Generate]:
    """Registers a function that makes a kernel from the annotations of a scheduled function's block ``out``.

    Some kernels are better written than scheduled. They are scheduled all the same: the schedule puts its decisions
    into annotations, and :func:`finish` replaces the function by what the generator makes of them.
    """

    def register(function: Generate) -> Generate:
        _GENERATORS[name] = function
        return function

    return register


def finish(sch: Schedule) -> tirx.PrimFunc:
    """The scheduled function, ready to be built or to be placed in a Relax module."""
    function = sch.mod["main"]
    if function.attrs is not None and GENERATOR in function.attrs:
        make = _GENERATORS[str(function.attrs[GENERATOR])]
        function = make(sch.get(sch.get_sblock("out")).annotations)
    return mark_scheduled(function.without_attr("global_symbol"))


def mark_scheduled(function: tirx.PrimFunc) -> tirx.PrimFunc:
    """Tells later passes to leave the kernel as it is: neither scheduled again nor fused."""
    return function.with_attr("tirx.is_scheduled", True).with_attr("op_pattern", OPAQUE)
