"""Depthwise convolutions: sixteen channels at once.

There is no sum over channels, but one over the window. With ``sdot`` the bytes of up to four rows of a column are
interleaved, so that a 32-bit lane holds four rows of one channel; the interleaved column serves every tap that reads it.
Without it, two taps at once are multiplied to 16 bits and added (``smull``, ``smlal``), and their sum is added to 32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.arm import intrinsics, memory
from qcompiler.targets.arm.finish import Epilogue, Finish
from qcompiler.targets.arm.layouts import BLOCK, VECTOR
from qcompiler.targets.arm.products import Tile
from qcompiler.targets.borders import in_root_block, sequence
from qcompiler.targets.cpu.shapes import ConvShape, ceil_div, loop_kind
from qcompiler.targets.cpu.vectors import Body, broadcast, ramp, shuffle

Load = Callable[[Body, "Expr | int", int], Expr]
"""Gives the bytes of a row of the window, and of an input column counted from the tile's first."""

Weight = Callable[[Body, "Expr | int"], Expr]
"""Gives sixteen packed weights."""

WORD = 4
"""Rows of a window that one lane of ``sdot`` covers."""

UNROLLED = 9
"""Taps of a window without a loop over its rows."""

QUARTERS = BLOCK // VECTOR
"""Vectors of int32 for the channels of a block."""


def uses_sdot(instruction: str, shape: ConvShape) -> bool:
    """Whether interleaving rows is worth it: the chip has ``sdot``, and the window more than one row."""
    return instruction in ("sdot", "smmla") and shape.kernel[0] > 1


def pack_channels(values: NDArray[Any]) -> NDArray[Any]:
    """Packs ``[C, ...]`` values of channels to ``[C/16, 16, ...]``.

    The last block holds the last 16 channels, some of them in the block before too; of fewer than 16, the rest is zero.
    """
    channels = values.shape[0]
    if channels < BLOCK:
        values = np.concatenate([values, np.zeros((BLOCK - channels, *values.shape[1:]), values.dtype)])
    starts = np.minimum(np.arange(ceil_div(channels, BLOCK)) * BLOCK, max(channels - BLOCK, 0))
    return values[starts[:, None] + np.arange(BLOCK)]


def pack_weight(weight: NDArray[np.int8], *, sdot: bool) -> NDArray[np.int8]:
    """Packs ``[C, 1, KH, KW]`` weights to ``[C/16, KW, KH/4, 16, 4]`` for ``sdot``, else to ``[C/16, KH, KW, 16]``."""
    packed = pack_channels(weight[:, 0])
    blocks, _, kh, kw = packed.shape
    if not sdot:
        return np.ascontiguousarray(packed.transpose(0, 2, 3, 1))
    chunks = ceil_div(kh, WORD)
    rows = np.zeros((blocks, BLOCK, chunks * WORD, kw), np.int8)
    rows[:, :, :kh] = packed
    return np.ascontiguousarray(rows.reshape(blocks, BLOCK, chunks, WORD, kw).transpose(0, 4, 2, 1, 3))


@dataclass(frozen=True)
class Decision:
    """Decisions of a depthwise kernel.

    Attributes:
        columns: output columns whose accumulators are in registers at once.
        channel_major: the loop over blocks of channels is outside of the loop over rows.
    """

    columns: int
    channel_major: bool = False


class Depthwise:
    """A depthwise convolution without padding of its own.

    The arguments are x, the weights of ``pack_weight``, and those of ``Finish`` for blocks of 16 channels.

    Args:
        shape: extents; padding must be zero.
        epilogue: what happens to a sum.
        decision: the tile.
        sdot: multiply by ``sdot``.
        paired: two products fit in 16 bits, since no weight is -128.
    """

    def __init__(
        self, shape: ConvShape, epilogue: Epilogue, decision: Decision, *, sdot: bool, paired: bool
    ) -> None:
        assert not any(shape.padding), shape
        self.shape, self.decision, self.sdot, self.paired = shape, decision, sdot, paired
        n, c, (kh, kw) = shape.batch, shape.out_channels, shape.kernel
        self.blocks, self.chunks = ceil_div(c, BLOCK), ceil_div(kh, WORD)
        self.x = tirx.decl_buffer((n, shape.height, shape.width, c), "int8", name="x")
        extents = (kw, self.chunks, BLOCK, WORD) if sdot else (kh, kw, BLOCK)
        self.weight = tirx.decl_buffer((self.blocks, *extents), "int8", name="weight")
        taps = kw * self.chunks * QUARTERS if sdot else kh * kw
        self.flat_weight = tirx.decl_buffer(
            (self.blocks * taps * BLOCK,), "int8", name="flat_weight", data=self.weight.data
        )
        self.taps = taps
        self.finish = Finish(epilogue, self.blocks, BLOCK, (n, shape.out_height, shape.out_width, c))

    def function(self, cycles: int) -> tirx.PrimFunc:
        """The kernel, which takes about ``cycles`` on one core."""
        rows, columns = self.shape.batch * self.shape.out_height, self.decision.columns
        row: Expr
        block: Expr
        if self.decision.channel_major:
            task = tirx.Var("task", "int32")
            row, block = task % rows, task // rows
        else:
            row, block = tirx.Var("row", "int32"), tirx.Var("block", "int32")
        steps: list[tirx.Stmt] = []
        tiles, rest = divmod(self.shape.out_width, columns)
        if tiles:
            step = tirx.Var("tile", "int32")
            body = self._tile(row, step * columns, columns, block)
            steps.append(tirx.For(step, 0, tiles, tirx.ForKind.SERIAL, body))
        if rest:
            steps.append(self._tile(row, tirx.const(tiles * columns, "int32"), rest, block))
        if self.decision.channel_major:
            loop = tirx.For(task, 0, rows * self.blocks, loop_kind(cycles), sequence(steps))
        else:
            inner = tirx.For(block, 0, self.blocks, tirx.ForKind.SERIAL, sequence(steps))
            loop = tirx.For(row, 0, rows, loop_kind(cycles), inner)
        view = tirx.DeclBuffer(self.flat_weight, data=self.weight.data)
        whole = in_root_block(tirx.SeqStmt([view, loop]))
        function = tirx.PrimFunc([self.x, self.weight, *self.finish.arguments], whole)
        return function.with_attr("tirx.noalias", True).with_attr("s_tir", True)

    def _tile(self, row: Expr, first: Expr, columns: int, block: Expr) -> tirx.Stmt:
        """``columns`` output columns from ``first`` on, of the channels of a block."""
        s, body = self.shape, Body()
        image, i = row // s.out_height, row % s.out_height
        channels = min(s.out_channels, BLOCK)
        # The last block is whole too: it begins among the channels of the one before.
        channel = body.name(tirx.min(block * BLOCK, s.out_channels - channels), "channel")

        def load(body: Body, r: Expr | int, column: int) -> Expr:
            index = [image, i * s.strides[0] + r * s.dilation[0], first * s.strides[1] + column]
            return memory.load(body, self.x, index, channel, channels, BLOCK)

        def weight(body: Body, tap: Expr | int) -> Expr:
            place = ramp((block * self.taps + tap) * BLOCK, BLOCK)
            return body.name(tirx.BufferLoad(self.flat_weight, [place]), "w")

        tile = Tile.allocated(body, columns, QUARTERS, columns * QUARTERS)
        for k in range(QUARTERS):
            bias = body.name(self.finish.constant("bias", block * QUARTERS + k), "bias")
            for j in range(columns):
                tile.set(body, j * QUARTERS + k, bias)
        rows, width = s.kernel
        if self.sdot:
            self._by_sdot(body, tile, load, weight)
        elif rows * width <= UNROLLED:
            self._by_smull(body, tile, [(r, q) for r in range(rows) for q in range(width)], load, weight)
        else:
            kh, inner = tirx.Var("kh", "int32"), Body()
            self._by_smull(inner, tile, [(kh, q) for q in range(width)], load, weight)
            body.add(tirx.For(kh, 0, rows, tirx.ForKind.SERIAL, tirx.SeqStmt(inner.statements)))
        for j in range(columns):
            sums = [tile.register(j * QUARTERS + k) for k in range(QUARTERS)]
            self.finish.write(body, sums, block * QUARTERS, [image, i, first + j], channels, channel)
        return tirx.SeqStmt(body.statements)

    def _by_sdot(self, body: Body, tile: Tile, load: Load, weight: Weight) -> None:
        (kh, kw), stride, dilation = self.shape.kernel, self.shape.strides[1], self.shape.dilation[1]
        outputs = range(tile.columns)
        for column in sorted({j * stride + q * dilation for j in outputs for q in range(kw)}):
            taps = [(j, q) for j in outputs for q in range(kw) if j * stride + q * dilation == column]
            for chunk in range(self.chunks):
                rows = [load(body, r, column) for r in range(chunk * WORD, min(kh, chunk * WORD + WORD))]
                words = _words(body, rows)
                for j, q in taps:
                    for k in range(QUARTERS):
                        w = weight(body, (q * self.chunks + chunk) * QUARTERS + k)
                        register = j * QUARTERS + k
                        tile.set(body, register, intrinsics.sdot(tile.register(register), w, words[k]))

    def _by_smull(
        self, body: Body, tile: Tile, taps: Sequence[tuple[Expr | int, int]], load: Load, weight: Weight
    ) -> None:
        stride, dilation = self.shape.strides[1], self.shape.dilation[1]
        step = 2 if self.paired else 1
        for t in range(0, len(taps), step):
            group = taps[t : t + step]
            weights = [weight(body, r * self.shape.kernel[1] + q) for r, q in group]
            for j in range(tile.columns):
                x = [load(body, r, j * stride + q * dilation) for r, q in group]
                for part, half in enumerate((intrinsics.low, intrinsics.high)):
                    operands = [(half(w), half(v)) for w, v in zip(weights, x, strict=True)]
                    if len(operands) == 2:
                        products = intrinsics.smull_smlal(*operands[0], *operands[1])
                    else:
                        products = intrinsics.smull(*operands[0])
                    products = body.name(products, "products")
                    for k in (0, 1):
                        wide = shuffle([products], range(4 * k, 4 * k + 4)).astype("int32x4")
                        register = j * QUARTERS + 2 * part + k
                        tile.set(body, register, tile.register(register) + wide)


def _words(body: Body, rows: Sequence[Expr]) -> list[Expr]:
    """Up to four rows of 16 bytes as four vectors of words: ``zip1`` and ``zip2`` of bytes, then of pairs of bytes."""
    a, b, c, d = (*rows, *[broadcast(0, "int8", BLOCK)] * (WORD - len(rows)))
    words = []
    for half in (0, 8):
        upper = body.name(shuffle([a, b], [half + k // 2 + 16 * (k % 2) for k in range(16)]), "zip")
        lower = body.name(shuffle([c, d], [half + k // 2 + 16 * (k % 2) for k in range(16)]), "zip")
        for quarter in (0, 8):
            order = [quarter + 2 * (k // 4) + k % 2 + 16 * (k // 2 % 2) for k in range(16)]
            words.append(body.name(shuffle([upper, lower], order), "word"))
    return words


def column_counts(shape: ConvShape) -> list[int]:
    """Output columns that a tile may have: a column takes four vectors of accumulators."""
    return list(range(1, min(shape.out_width, 5) + 1))


def decision(shape: ConvShape) -> Decision:
    """The tile without tuning: four columns or fewer, as evenly as they divide a row."""
    return Decision(min(column_counts(shape)[:4], key=lambda c: (ceil_div(shape.out_width, c), c)))


def cycles(shape: ConvShape) -> int:
    """What the kernel takes on one core, about."""
    outputs = shape.batch * shape.out_height * shape.out_width * shape.out_channels
    return outputs * (shape.kernel[0] * shape.kernel[1] + 6) // 8
