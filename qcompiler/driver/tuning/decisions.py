"""Decisions of a schedule, taken from its trace and given to a sketch.

A trace is kept as MetaSchedule writes it: a list of instructions and the decisions of those that sample. Only the
decisions are used again. They are given to the sketch of the kernel at hand that is most like the trace, so that whatever
belongs to the kernel itself, such as a zero point in an annotation, comes from that kernel, and so that the decisions of
one kernel can be tried on another.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace

from qcompiler.targets.workload import Workload, sketched

TraceJson = list[Any]
"""``[instructions, decisions]``; an instruction is ``[kind, inputs, attributes, outputs]``, a decision ``[index, value]``."""

_TILE = "SamplePerfectTile"
_CHOICE = "SampleCategorical"


def to_json(trace: Trace) -> TraceJson:
    """``trace`` without instructions that nothing depends on, as JSON."""
    result = plain(trace.simplified(True).as_json(False))
    assert isinstance(result, list)
    return result


def plain(value: Any) -> Any:
    """What TVM gives for JSON, made of Python's own types."""
    if isinstance(value, tirx.IntImm):
        return int(value.value)
    if isinstance(value, tirx.FloatImm):
        return float(value.value)
    if isinstance(value, str):
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if hasattr(value, "items"):
        return {str(k): plain(v) for k, v in value.items()}
    return [plain(v) for v in value]


@dataclass(frozen=True)
class Sample:
    """One decision.

    Attributes:
        kind: the sampling instruction.
        value: factors of a tile, or the chosen number.
        limit: of a tile: the largest innermost factor.
        choices: of a choice: the numbers to choose from.
    """

    kind: str
    value: tuple[float, ...]
    limit: int = 0
    choices: tuple[float, ...] = ()


def samples(trace: TraceJson) -> list[Sample]:
    """The decisions of ``trace``, in order."""
    instructions, decisions = trace
    found = []
    for index, value in decisions:
        kind, _, attributes, _ = instructions[index]
        if kind == _TILE:
            found.append(Sample(kind, tuple(int(v) for v in value), limit=int(attributes[1])))
        elif kind == _CHOICE:
            choices = tuple(float(c) for c in attributes[0])
            found.append(Sample(kind, (choices[int(value)],), choices=choices))
        else:
            raise ValueError(f"the trace samples with {kind}; known: {_TILE}, {_CHOICE}")
    return found


def key(trace: TraceJson) -> str:
    """A text that equal schedules of one kernel share."""
    return json.dumps(trace, separators=(",", ":"))


@dataclass(frozen=True)
class Fitted:
    """Decisions on a sketch.

    Attributes:
        schedule: the kernel with the sketch's instructions and the decisions.
        exact: every decision could be taken as it was.
    """

    schedule: Schedule
    exact: bool


def fit(workload: Workload, trace: TraceJson) -> Fitted | None:
    """Gives the decisions of ``trace`` to the sketch of ``workload`` that is most like it.

    Tiles become the nearest divisors below; a choice becomes the nearest number that can be chosen.

    Returns:
        The schedule, or None where no sketch samples what the trace samples.
    """
    wanted = samples(trace)
    structure = _structure(trace)
    best: tuple[float, Schedule, TraceJson] | None = None
    for index in range(len(workload.sketches)):
        sch = sketched(workload, index)
        own = to_json(sch.trace)
        if [s.kind for s in samples(own)] != [s.kind for s in wanted]:
            continue
        likeness = difflib.SequenceMatcher(None, structure, _structure(own), autojunk=False).ratio()
        if best is None or likeness > best[0]:
            best = likeness, sch, own
        if likeness == 1:
            break
    if best is None:
        return None
    _, sch, own = best
    # The sketch's own trace, whose random variables are real ones; both list their samples in the same order.
    simple = sch.trace.simplified(True)
    sampling = [inst for inst in simple.insts if str(inst.kind.name) in (_TILE, _CHOICE)]
    exact = True
    for inst, given, mine in zip(sampling, wanted, samples(own), strict=True):
        value = _tile(given, mine) if mine.kind == _TILE else _choice(given, mine)
        exact &= value == given.value
        decision = [int(v) for v in value] if mine.kind == _TILE else mine.choices.index(value[0])
        simple = simple.with_decision(inst, decision, False)
    result = Schedule(workload.module)
    simple.apply_to_schedule(result, False)
    return Fitted(result, exact)


def _structure(trace: TraceJson) -> list[str]:
    """The instructions without what sampling depends on."""
    return [
        json.dumps([kind, inputs, [] if kind in (_TILE, _CHOICE) else attributes])
        for kind, inputs, attributes, _ in trace[0]
    ]


def _tile(given: Sample, mine: Sample) -> tuple[float, ...]:
    """Factors of the loop of ``mine``, innermost first as near below those of ``given`` as they divide it."""
    extent = int(prod(mine.value))
    if prod(given.value) == extent:
        return given.value
    factors: list[int] = []
    for wanted in reversed(given.value[1:]):
        most = int(wanted) if factors else min(int(wanted), max(mine.limit, int(mine.value[-1])))
        factor = max(d for d in range(1, max(most, 1) + 1) if extent % d == 0)
        factors.append(factor)
        extent //= factor
    return (extent, *reversed(factors))


def _choice(given: Sample, mine: Sample) -> tuple[float, ...]:
    return (min(mine.choices, key=lambda c: abs(c - given.value[0])),)


def extents(shapes: Sequence[Sequence[int]]) -> list[int]:
    """All extents of some buffers in one list."""
    return [int(d) for shape in shapes for d in shape]
