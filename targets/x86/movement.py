"""Kernels of x86 that copy bytes: concatenation along the last axis."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm import tirx

from qcompiler.targets.x86.decisions import divisor_at_most
from qcompiler.targets.x86.schedules import PARALLEL_MINIMUM, mark_scheduled


def concat_last(shapes: Sequence[Sequence[int]], vector: int) -> tirx.PrimFunc:
    """Concatenation of uint8 tensors along their last axis: runs of each input's channels, a row a task.

    Args:
        shapes: the inputs' shapes, equal but for the last axis.
        vector: bytes copied at once, at most.
    """
    outer = tuple(shapes[0][:-1])
    channels = sum(s[-1] for s in shapes)
    inputs = [tirx.decl_buffer(tuple(s), "uint8", name=f"x{k}") for k, s in enumerate(shapes)]
    output = tirx.decl_buffer((*outer, channels), "uint8", name="out")
    index = [tirx.Var(f"i{k}", "int32") for k in range(len(outer))]
    copies, first = [], 0
    for source, shape in zip(inputs, shapes, strict=True):
        width = divisor_at_most(shape[-1], vector)
        step = tirx.Var("c", "int32")
        channel = tirx.Ramp(step * width, 1, width) if width > 1 else step
        target = tirx.Ramp(step * width + first, 1, width) if width > 1 else step + first
        store = tirx.BufferStore(output, tirx.BufferLoad(source, [*index, channel]), [*index, target])
        copies.append(tirx.For(step, 0, shape[-1] // width, tirx.ForKind.SERIAL, store))
        first += shape[-1]
    body: tirx.Stmt = tirx.SeqStmt(copies) if len(copies) > 1 else copies[0]
    parallel = 8 * prod(outer) * channels >= PARALLEL_MINIMUM
    for k in reversed(range(len(outer))):
        outermost = next((j for j, extent in enumerate(outer) if extent > 1), 0)
        kind = tirx.ForKind.PARALLEL if parallel and k == outermost else tirx.ForKind.SERIAL
        body = tirx.For(index[k], 0, outer[k], kind, body)
    return mark_scheduled(tirx.PrimFunc([*inputs, output], body).with_attr("tirx.noalias", True))
