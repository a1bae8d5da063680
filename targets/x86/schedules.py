"""Schedules of the x86 kernels: from what a kernel computes to loops over registers.

Every function takes a schedule whose block names are those of ``computes`` and the decisions; the inner loops keep
their accumulators in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ExprRV, LoopRV

from qcompiler.targets.cpu.shapes import PARALLEL_MINIMUM, Kernel, divisor_at_most
from qcompiler.targets.x86.decisions import ConvDecision


def _extent(sch: Schedule, loop: LoopRV) -> int:
    return int(sch.get(loop).extent)


def _sample_inner(sch: Schedule, loop: LoopRV, inner: int, limit: int) -> ExprRV:
    """Samples the inner extent of a split of ``loop``, a divisor of at most ``limit``; the decision is ``inner``."""
    outer = _extent(sch, loop) // inner
    return sch.sample_perfect_tile(
        loop, n=2, max_innermost_factor=max(limit, inner), decision=[outer, inner]
    )[1]


def _fuse_parallel(sch: Schedule, loops: Sequence[LoopRV], cycles: int) -> LoopRV:
    fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
    if cycles >= PARALLEL_MINIMUM:
        sch.parallel(fused)
    return fused


def schedule_pad(sch: Schedule, vector: int) -> None:
    """Copies the input into its padded buffer, a row a task, in vectors of channels."""
    block = sch.get_sblock("pad")
    *outer, channel = sch.get_loops(block)
    channels = _extent(sch, channel)
    elements = prod([channels, *(_extent(sch, loop) for loop in outer)])
    if len(outer) == 3:
        outer.pop()  # columns and channels; rows of bytes have one axis for both
    if outer:
        _fuse_parallel(sch, outer, elements // 8)
    width = divisor_at_most(channels, vector)
    _, inner = sch.split(channel, [None, width])
    if width > 1:
        sch.vectorize(inner)


def _unroll_and_vectorize(sch: Schedule, loops: Sequence[LoopRV]) -> None:
    for loop in loops[:-1]:
        sch.unroll(loop)
    sch.vectorize(loops[-1])


UNROLLED_STEPS = 4
"""Steps of the reduction that tuning unrolls at most."""


def schedule_conv2d(
    sch: Schedule,
    *,
    kernel: Kernel,
    decision: ConvDecision,
    lanes: int,
    dot: str,
    sampled_width: int,
    cycles: int,
    vector: int,
    imported: str | None = None,
) -> None:
    """Tiles a convolution or a matrix product by output columns and blocks of output channels.

    Args:
        sch: schedule of ``kernel``.
        kernel: what ``computes.conv2d`` gave.
        decision: loop order and tile sizes; the width of the tile is a sample.
        lanes: output channels of a block.
        dot: name of the tensor intrinsic.
        sampled_width: columns of a tile at most.
        cycles: what the layer takes on one core, about.
        vector: elements of the input that are copied at once, where it is padded.
        imported: LLVM code of functions that the intrinsic calls.
    """
    acc, requantize, out = (sch.get_sblock(name) for name in ("acc", "requantize", "out"))
    *rows, column, channel = sch.get_loops(out)
    # The columns are cut where the accumulators are: the output may have fewer of them.
    computed = sch.get_loops(acc)[2]
    width = _sample_inner(sch, computed, decision.tile_width, sampled_width)
    tile, w1 = sch.split(column, [None, width])
    c0, c1, lane = sch.split(channel, [None, decision.tile_blocks, lanes])
    if decision.channel_major:
        sch.reorder(c0, *rows, tile, w1, c1, lane)
        outer = [c0, *rows]
    else:
        sch.reorder(*rows, c0, tile, w1, c1, lane)
        outer = [*rows, c0]
    if len(rows) == 0:
        # A matrix has no rows of columns: tiles of columns are the tasks. With few of them, one weight block is
        # used by all tiles before the next is read.
        outer = [*outer, tile] if decision.channel_major else [tile, *outer]
        if not decision.channel_major:
            sch.reorder(tile, c0)
        outermost = innermost = _fuse_parallel(sch, outer, cycles)
    else:
        outermost, innermost = _fuse_parallel(sch, outer, cycles), tile
    if imported is not None:
        sch.annotate(outermost, "pragma_import_llvm", imported)
    if kernel.whole:
        sch.compute_inline(requantize)
        last = out
    else:
        sch.compute_at(requantize, innermost, preserve_unit_loops=True)
        last = requantize
    sch.compute_at(acc, innermost, preserve_unit_loops=True)
    axes = 5 + len([v for v in sch.get(acc).iter_vars if v.iter_type == tirx.IterVar.CommReduce])
    b, i, j, block, lane_acc, kh, kw, ko, *ki = sch.get_loops(acc)[-axes:]
    k0, k1 = sch.split(ko, [None, _sample_inner(sch, ko, 1, UNROLLED_STEPS)])
    sch.reorder(kh, kw, k0, k1, b, i, j, block, lane_acc, *ki)
    sch.unroll(k1)
    init = sch.decompose_reduction(acc, kh)
    for loop in (b, i, j, block):
        sch.unroll(loop)
    sch.tensorize(lane_acc, dot)
    _unroll_and_vectorize(sch, sch.get_loops(init)[-5:])
    if last is out:
        _unroll_and_vectorize(sch, [w1, c1, lane])
    else:
        _unroll_and_vectorize(sch, sch.get_loops(requantize)[-5:])
    if kernel.padded:
        schedule_pad(sch, vector)


def schedule_depthwise(
    sch: Schedule, *, kernel: Kernel, tile_width: int, lanes: int, sampled_width: int, cycles: int, vector: int
) -> None:  # fmt: skip
    """Tiles a depthwise convolution by output columns, a sample, and vectors of channels; all taps are unrolled."""
    acc, requantize, out = (sch.get_sblock(name) for name in ("acc", "requantize", "out"))
    b, i, column, channel = sch.get_loops(out)
    width = _sample_inner(sch, sch.get_loops(acc)[2], tile_width, sampled_width)
    tile, w1 = sch.split(column, [None, width])
    c0, lane = sch.split(channel, [None, lanes])
    sch.reorder(b, i, c0, tile, w1, lane)
    _fuse_parallel(sch, [b, i], cycles)
    if kernel.whole:
        sch.compute_inline(requantize)
    else:
        sch.compute_at(requantize, tile, preserve_unit_loops=True)
    sch.compute_at(acc, tile, preserve_unit_loops=True)
    ab, ai, aj, ac, al, kh, kw = sch.get_loops(acc)[-7:]
    sch.reorder(kh, kw, ab, ai, aj, ac, al)
    sch.vectorize(al)  # allowed only while the block still holds its own initialization
    init = sch.decompose_reduction(acc, kh)
    for loop in (kh, kw, ab, ai, aj, ac):
        sch.unroll(loop)
    for loop in sch.get_loops(init)[-5:-1]:
        sch.unroll(loop)
    if kernel.whole:
        _unroll_and_vectorize(sch, [w1, lane])
    else:
        _unroll_and_vectorize(sch, sch.get_loops(requantize)[-5:])
    if kernel.padded:
        schedule_pad(sch, vector)
