"""A depthwise 1x1 convolution of concatenated tensors, in one pass over them.

A network that normalizes the concatenation of earlier layers (DenseNet) would write every such concatenation and read
it again, only to scale its channels. Here the convolution reads the concatenated tensors themselves; where one of them
comes out of a table, as it does to change its scale, it is looked up on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.borders import sequence
from qcompiler.targets.cpu.shapes import divisor_at_most, loop_kind
from qcompiler.targets.cpu.vectors import Body, shuffle
from qcompiler.targets.workload import mark_scheduled
from qcompiler.targets.x86.computes import Requantization
from qcompiler.targets.x86.depthwise import WORD, Run, channel_runs, finished, vectors, words_of
from qcompiler.targets.x86.tables import LOOKUP, looked_up

PIXELS_OF_A_TASK = 64
"""Pixels that a task computes at most, one run of channels after the other."""


@dataclass(frozen=True)
class Piece:
    """One of the concatenated tensors.

    Attributes:
        channels: of it, a multiple of 4.
        looked_up: its bytes are indices of a table.
    """

    channels: int
    looked_up: bool


@dataclass(frozen=True)
class _Segment:
    """Adjacent channels of a piece that belong to one run; ``width`` is a power of two."""

    piece: int
    first: int
    width: int


def _segments(pieces: Sequence[Piece], run: Run) -> list[_Segment]:
    """The parts of ``pieces`` that make up a run's channels, in order."""
    found: list[_Segment] = []
    first, end = run.channel, run.channel + run.lanes * len(run.vectors)
    start = 0
    for k, piece in enumerate(pieces):
        at, stop = max(first, start), min(end, start + piece.channels)
        while at < stop:
            width = 1 << ((stop - at).bit_length() - 1)
            found.append(_Segment(k, at - start, width))
            at += width
        start += piece.channels
    return found


def depthwise_of_concat(
    pixels: Sequence[int], pieces: Sequence[Piece], last: Requantization, lanes: int
) -> tirx.PrimFunc:
    """``qc.conv2d`` with a 1x1 window and one input channel a group, of tensors concatenated along the channels.

    The arguments are the pieces ``[N, H, W, Ck]``, the tables of those that have one, the constants of
    ``depthwise.pack_weight`` and ``depthwise.pack_channels`` (weight, bias, multiplier), and the output
    ``[N, H, W, C]``.

    Args:
        pixels: N, H and W.
        pieces: what is concatenated. Tables need ``vpermi2b``.
        last: requantization of an accumulator.
        lanes: 32-bit lanes of a vector.
    """
    channels = sum(piece.channels for piece in pieces)
    count, total = vectors(channels, lanes), prod(pixels)
    inputs = [tirx.decl_buffer((*pixels, p.channels), "uint8", name=f"x{k}") for k, p in enumerate(pieces)]
    flat = [
        tirx.decl_buffer((total * p.channels,), "uint8", name=f"flat_x{k}", data=inputs[k].data)
        for k, p in enumerate(pieces)
    ]
    tables = {
        k: tirx.decl_buffer((256,), "uint8", name=f"table{k}") for k, p in enumerate(pieces) if p.looked_up
    }
    weight = tirx.decl_buffer((count, 1, 1, lanes, WORD), "int8", name="weight")
    bias = tirx.decl_buffer((count, lanes), "int32", name="bias")
    multiplier = tirx.decl_buffer((count, lanes), "float32", name="multiplier")
    out = tirx.decl_buffer((*pixels, channels), "uint8", name="out")
    flat_out = tirx.decl_buffer((total * channels,), "uint8", name="flat_out", data=out.data)
    of_task = divisor_at_most(total, PIXELS_OF_A_TASK)
    task = tirx.Var("task", "int32")

    def read(body: Body, pixel: Expr, run: Run) -> Expr:
        """The bytes of a run's channels, after their tables."""
        size = run.lanes * len(run.vectors)
        segments = _segments(pieces, run)
        taken = []
        for part in segments:
            start = pixel * pieces[part.piece].channels + part.first
            taken.append(
                body.name(tirx.BufferLoad(flat[part.piece], [tirx.Ramp(start, 1, part.width)]), "taken")
            )
        row = body.name(shuffle(taken, range(size)), "row") if len(taken) > 1 else taken[0]
        used = sorted({part.piece for part in segments} & set(tables))
        if not used:
            return row
        copies = [row] * (LOOKUP // size)
        index = body.name(shuffle(copies, range(LOOKUP)), "index") if size < LOOKUP else row
        sources = {k: body.name(looked_up(tables[k], index), "found") for k in used}
        owners = [part.piece for part in segments for _ in range(part.width)]
        merged = index if set(used) < set(owners) else sources[used[0]]
        for k in used:
            if not merged.same_as(sources[k]):
                mine = [lane < size and owners[lane] == k for lane in range(LOOKUP)]
                order = [lane + LOOKUP * own for lane, own in enumerate(mine)]
                merged = body.name(shuffle([merged, sources[k]], order), "merged")
        return merged if size == LOOKUP else body.name(shuffle([merged], range(size)), "row")

    def of_run(run: Run) -> tirx.Stmt:
        step = tirx.Var("pixel", "int32")
        pixel = task * of_task + step
        body = Body()
        rows = [read(body, pixel, run)]
        sums = []
        for place, words in zip(run.vectors, words_of(body, rows, run), strict=True):
            ramp = tirx.Ramp(0, 1, run.lanes)
            taken = tirx.BufferLoad(weight, [place, 0, 0, 0, tirx.Ramp(0, 1, run.lanes * WORD)])
            dot = f"llvm.x86.avx512.vpdpbusd.{run.lanes * 32}"
            before = tirx.BufferLoad(bias, [place, ramp])
            product = tirx.call_llvm_pure_intrin(f"int32x{run.lanes}", dot, before, words, taken)
            sums.append(body.name(product, "sum"))
        scales = [tirx.BufferLoad(multiplier, [p, tirx.Ramp(0, 1, run.lanes)]) for p in run.vectors]
        done = finished(body, sums, scales, last, run.lanes)
        size = run.lanes * len(run.vectors)
        target = tirx.Ramp(pixel * channels + run.channel, 1, size)
        body.add(tirx.BufferStore(flat_out, done, [target]))
        return tirx.For(step, 0, of_task, tirx.ForKind.SERIAL, tirx.SeqStmt(body.statements))

    views = [tirx.DeclBuffer(f, data=x.data) for f, x in zip([*flat, flat_out], [*inputs, out], strict=True)]
    loops = sequence([of_run(run) for run in channel_runs(channels, lanes)])
    loop = tirx.For(task, 0, total // of_task, loop_kind(total * channels // 4), loops)
    params = [*inputs, *tables.values(), weight, bias, multiplier, out]
    function = tirx.PrimFunc(params, tirx.SeqStmt([*views, loop])).with_attr("tirx.noalias", True)
    return mark_scheduled(function)
