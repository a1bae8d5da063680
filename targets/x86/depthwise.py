"""Depthwise convolution with ``vpdpbusd``: the rows of a window are the four bytes of a dot product.

A depthwise convolution has no sum over channels for a dot product, but it has one over the window. The bytes of up
to four rows of a column are interleaved, so that a 32-bit lane holds four rows of one channel: one ``vpdpbusd`` then
multiplies and adds four taps, and the interleaved column serves every tap that reads it. Interleaving a whole vector
of bytes by unpack instructions leaves the channels in an order that the pack instructions of the last step undo.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr
from tvm.s_tir import Schedule

from qcompiler.targets.base import Target
from qcompiler.targets.borders import sequence
from qcompiler.targets.cpu import shapes
from qcompiler.targets.cpu.shapes import ConvShape, Kernel, ceil_div, loop_kind
from qcompiler.targets.cpu.vectors import Body, broadcast, shuffle
from qcompiler.targets.workload import GENERATOR, generator
from qcompiler.targets.x86.computes import Requantization, round_half_even

WORD = 4
"""Bytes of a lane: rows of a window that one instruction covers."""


@dataclass(frozen=True)
class Run:
    """Adjacent channels that are computed together.

    Attributes:
        channel: the first of them.
        vectors: positions of their vectors in the packed constants.
        lanes: channels of a vector.
    """

    channel: int
    vectors: tuple[int, ...]
    lanes: int

    def order(self, vector: int) -> list[int]:
        """The channels of the lanes of vector ``vector`` of this run, in order, from the run's first.

        Of four vectors, a 128-bit part of vector k holds channels 4k to 4k + 3 of each 16, as unpacking leaves them.
        """
        if len(self.vectors) == 1:
            return list(range(self.lanes))
        return [16 * (lane // 4) + 4 * vector + lane % 4 for lane in range(self.lanes)]


def channel_runs(channels: int, lanes: int) -> list[Run]:
    """Cuts channels, a multiple of 4, into runs of four vectors of ``lanes``, then of one vector, then of less."""
    runs: list[Run] = []
    first, position = 0, 0
    while first < channels:
        left = channels - first
        if left >= 4 * lanes:
            runs.append(Run(first, tuple(range(position, position + 4)), lanes))
        else:
            width = next(w for w in (lanes, 8, 4) if w <= lanes and w <= left)
            runs.append(Run(first, (position,), width))
        first += runs[-1].lanes * len(runs[-1].vectors)
        position += len(runs[-1].vectors)
    return runs


def vectors(channels: int, lanes: int) -> int:
    """Vectors of packed constants."""
    return sum(len(run.vectors) for run in channel_runs(channels, lanes))


def supports(shape: ConvShape, target: Target) -> bool:
    """Whether the kernel exists: no padding, the instruction, channels that fill words, and few taps."""
    window = shape.kernel[0] * shape.kernel[1]
    vnni = target.instruction == "vpdpbusd"
    return vnni and not any(shape.padding) and shape.in_channels % 4 == 0 and window <= 64


def pack_weight(weight: NDArray[np.int8], lanes: int) -> NDArray[np.int8]:
    """Packs ``[C, 1, KH, KW]`` weights to ``[V, KW, ceil(KH / 4), lanes, 4]``, V vectors of channels."""
    channels, _, kh, kw = weight.shape
    chunks = ceil_div(kh, WORD)
    rows = np.zeros((channels, chunks * WORD, kw), np.int8)
    rows[:, :kh] = weight[:, 0]
    words = rows.reshape(channels, chunks, WORD, kw).transpose(0, 3, 1, 2)
    return pack_channels(words, lanes).transpose(0, 2, 3, 1, 4).copy()


def pack_channels(values: NDArray[Any], lanes: int) -> NDArray[Any]:
    """Packs ``[C, ...]`` values of channels to ``[V, lanes, ...]``; lanes without a channel are zero."""
    runs = channel_runs(values.shape[0], lanes)
    packed = np.zeros((vectors(values.shape[0], lanes), lanes, *values.shape[1:]), values.dtype)
    for run in runs:
        for k, vector in enumerate(run.vectors):
            packed[vector, : run.lanes] = values[run.channel + np.array(run.order(k))]
    return packed


def _unpack(body: Body, a: Expr, b: Expr, size: int, element: int, high: bool) -> Expr:
    """``vpunpckl`` or ``vpunpckh`` of two vectors of ``size`` bytes and elements of ``element`` bytes."""
    order = []
    for part in range(0, size, 16):
        for k in range(8 // element):
            start = part + (8 if high else 0) + k * element
            order += [start + e for e in range(element)] + [size + start + e for e in range(element)]
    return body.name(shuffle([a, b], order), "unpacked")


def words_of(body: Body, rows: Sequence[Expr], run: Run) -> list[Expr]:
    """Rows of bytes, at most four, as vectors of words, one for each vector of the run."""
    size = run.lanes * len(run.vectors)
    zero = broadcast(0, "uint8", size)
    a, b, c, d = (*rows, *[zero] * (WORD - len(rows)))
    if len(run.vectors) == 1:
        order = [row * size + lane for lane in range(size) for row in range(WORD)]
        return [body.name(shuffle([a, b, c, d], order), "words")]
    words = []
    for high in (False, True):
        upper = _unpack(body, a, b, size, 1, high)
        lower = _unpack(body, c, d, size, 1, high)
        words += [_unpack(body, upper, lower, size, 2, half) for half in (False, True)]
    return words


def _pack(pairs: Sequence[Expr], lanes: int) -> Expr:
    """Four vectors of int32 as one of bytes, with saturation: ``vpackssdw`` twice and ``vpackuswb``."""
    family = {16: ("avx512", ".512"), 8: ("avx2", "")}[lanes]
    narrow = f"llvm.x86.{family[0]}.packssdw{family[1]}"
    halves = [
        tirx.call_llvm_pure_intrin(f"int16x{2 * lanes}", narrow, pairs[k], pairs[k + 1]) for k in (0, 2)
    ]
    bytes_ = f"llvm.x86.{family[0]}.packuswb{family[1]}"
    return tirx.call_llvm_pure_intrin(f"uint8x{4 * lanes}", bytes_, *halves)


def finished(body: Body, sums: Sequence[Expr], scales: Sequence[Expr], last: Requantization, lanes: int) -> Expr:  # fmt: skip
    """Accumulators of a run's vectors, bias included, as its bytes."""
    scaled = [total.astype(f"float32x{lanes}") * scale for total, scale in zip(sums, scales, strict=True)]
    if len(sums) == 1:
        return last(scaled[0])
    integers = []
    for value in scaled:
        if not last.bounded:
            value = tirx.min(value, broadcast(float(last.hi - last.zero_point), "float32", lanes))
            value = tirx.max(value, broadcast(float(last.lo - last.zero_point), "float32", lanes))
        integer = round_half_even(value)
        if last.zero_point:
            integer = integer + broadcast(last.zero_point, "int32", lanes)
        integers.append(body.name(integer, "integer"))
    # The packs saturate at 0 and 255; narrower bounds are applied to bytes.
    result = _pack(integers, lanes)
    if last.lo > 0:
        result = tirx.max(result, broadcast(last.lo, "uint8", 4 * lanes))
    if last.hi < 255:
        result = tirx.min(result, broadcast(last.hi, "uint8", 4 * lanes))
    return result


def depthwise_vnni(shape: ConvShape, last: Requantization, lanes: int, tile: int) -> tirx.PrimFunc:
    """A depthwise convolution without padding of its own.

    The arguments are x ``[N, H, W, C]``, the constants of ``pack_weight`` and ``pack_channels`` (weight, bias,
    multiplier), and the output.

    Args:
        shape: extents; padding must be zero.
        last: requantization of an accumulator.
        lanes: 32-bit lanes of a vector.
        tile: output columns whose accumulators are in registers at once.
    """
    n, oh, ow, c = shape.batch, shape.out_height, shape.out_width, shape.out_channels
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.strides, shape.dilation
    runs = channel_runs(c, lanes)
    count, chunks = vectors(c, lanes), ceil_div(kh, WORD)
    x = tirx.decl_buffer((n, shape.height, shape.width, c), "uint8", name="x")
    weight = tirx.decl_buffer((count, kw, chunks, lanes, WORD), "int8", name="weight")
    bias = tirx.decl_buffer((count, lanes), "int32", name="bias")
    multiplier = tirx.decl_buffer((count, lanes), "float32", name="multiplier")
    out = tirx.decl_buffer((n, oh, ow, c), "uint8", name="out")

    def columns(image: Expr, i: Expr, first: Expr, count: int, run: Run, shift: Expr | int) -> tirx.Stmt:
        """``count`` output columns from ``first`` on; the run's channels are ``shift`` runs further on."""
        body, size = Body(), run.lanes * len(run.vectors)
        channel = run.channel + shift * size
        places = [v + shift * len(run.vectors) for v in run.vectors]
        ramp = tirx.Ramp(channel, 1, size)
        sums: dict[tuple[int, int], Expr] = {}
        dot = f"llvm.x86.avx512.vpdpbusd.{run.lanes * 32}"
        for column in sorted({j * sw + q * dw for j in range(count) for q in range(kw)}):
            taps = [(j, q) for j in range(count) for q in range(kw) if j * sw + q * dw == column]
            for chunk in range(chunks):
                rows = [
                    body.name(tirx.BufferLoad(x, [image, i * sh + r * dh, first * sw + column, ramp]), "row")
                    for r in range(chunk * WORD, min(kh, chunk * WORD + WORD))
                ]
                words = words_of(body, rows, run)
                for j, q in taps:
                    for k, place in enumerate(places):
                        before = sums.get((j, k))
                        if before is None:
                            before = tirx.BufferLoad(bias, [place, tirx.Ramp(0, 1, run.lanes)])
                        taken = tirx.BufferLoad(
                            weight, [place, q, chunk, 0, tirx.Ramp(0, 1, run.lanes * WORD)]
                        )
                        product = tirx.call_llvm_pure_intrin(
                            f"int32x{run.lanes}", dot, before, words[k], taken
                        )
                        sums[j, k] = body.name(product, "sum")
        for j in range(count):
            scales = [tirx.BufferLoad(multiplier, [p, tirx.Ramp(0, 1, run.lanes)]) for p in places]
            done = finished(body, [sums[j, k] for k in range(len(places))], scales, last, run.lanes)
            body.add(tirx.BufferStore(out, done, [image, i, first + j, ramp]))
        return tirx.SeqStmt(body.statements)

    def row_of(image: Expr, i: Expr, run: Run, shift: Expr | int) -> list[tirx.Stmt]:
        steps: list[tirx.Stmt] = []
        if ow // tile:
            step = tirx.Var("tile", "int32")
            body = columns(image, i, step * tile, tile, run, shift)
            steps.append(tirx.For(step, 0, ow // tile, tirx.ForKind.SERIAL, body))
        if ow % tile:
            steps.append(columns(image, i, tirx.const(ow - ow % tile, "int32"), ow % tile, run, shift))
        return steps

    whole = [r for r in runs if len(r.vectors) > 1]
    rest = [r for r in runs if len(r.vectors) == 1]
    task = tirx.Var("task", "int32")
    # Rows are the tasks; without a rest of channels, the runs of a row are tasks too, which share the work better.
    tasks, body = n * oh, []
    if whole and not rest:
        tasks *= len(whole)
        row = task // len(whole)
        body = row_of(row // oh, row % oh, whole[0], task % len(whole))
    else:
        if whole:
            block = tirx.Var("block", "int32")
            inner = sequence(row_of(task // oh, task % oh, whole[0], block))
            body.append(tirx.For(block, 0, len(whole), tirx.ForKind.SERIAL, inner))
        for run in rest:
            body += row_of(task // oh, task % oh, run, 0)
    loop = tirx.For(task, 0, tasks, loop_kind(cycles(shape, lanes)), sequence(body))
    return tirx.PrimFunc([x, weight, bias, multiplier, out], loop).with_attr("tirx.noalias", True)


def cycles(shape: ConvShape, lanes: int) -> int:
    """What the kernel takes on one core, about: dot products, interleaving and the last step."""
    outputs = prod((shape.batch, shape.out_height, shape.out_width, shape.out_channels)) // lanes
    return outputs * (shape.kernel[1] * ceil_div(shape.kernel[0], WORD) + 6)


NAME = "qc.x86.depthwise_vnni"
"""Name of the generator, and of the annotation that holds the extents."""


def unscheduled(kernel: Kernel) -> tirx.PrimFunc:
    """The function of what ``computes.depthwise_conv2d`` gave, to be generated."""
    return shapes.unscheduled(kernel).with_attr(GENERATOR, NAME)


def schedule(
    sch: Schedule, *, shape: ConvShape, last: Requantization, lanes: int, tile: int, tiles: Sequence[int]
) -> None:
    """Samples the columns of a tile from ``tiles``; the decision is ``tile``."""
    weights = [1 / len(tiles)] * len(tiles)
    chosen = sch.sample_categorical(list(tiles), weights, decision=list(tiles).index(tile))
    out = sch.get_sblock("out")
    sch.split(sch.get_loops(out)[2], [None, chosen])
    extents = [
        shape.batch, shape.height, shape.width, shape.in_channels, *shape.kernel, *shape.strides, *shape.dilation,
        last.zero_point, last.lo, last.hi, int(last.bounded), lanes,
    ]  # fmt: skip
    sch.annotate(out, NAME, extents)
    sch.annotate(out, f"{NAME}.tile", chosen)


@generator(NAME)
def _generate(annotations: Mapping[str, Any]) -> tirx.PrimFunc:
    extents = (int(e) for e in annotations[NAME])
    n, h, w, c, kh, kw, sh, sw, dh, dw, zero_point, lo, hi, bounded, lanes = extents
    shape = ConvShape(n, h, w, c, c, (kh, kw), (sh, sw), (0, 0, 0, 0), (dh, dw), c)
    last = Requantization(zero_point, lo, hi, bool(bounded))
    return depthwise_vnni(shape, last, lanes, int(annotations[f"{NAME}.tile"]))
