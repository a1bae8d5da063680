"""Kernels without tensor cores: each thread computes outputs of its own, with four products an instruction."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from qcompiler.targets.cpu.shapes import ConvShape, ceil_div
from qcompiler.targets.cuda.finish import Epilogue, Finish
from qcompiler.targets.cuda.kernel import (
    WARP,
    Kernel,
    bind,
    every,
    placed,
    registers,
    repeated,
    store,
    view,
    when,
)
from qcompiler.targets.cuda.layouts import as_words

THREADS = 128
"""Threads of a block."""


def pack_taps(weight: NDArray[np.int8]) -> NDArray[np.int32]:
    """``[CO, I, KH, KW]`` as words ``[KH, KW, ceil(I / 4), CO]``, flat."""
    out, channels, *window = weight.shape
    words = ceil_div(channels, 4)
    filled = np.pad(weight, ((0, 0), (0, 4 * words - channels), (0, 0), (0, 0)))
    return as_words(filled.reshape(out, words, 4, *window).transpose(3, 4, 1, 0, 2))


@dataclass(frozen=True)
class Grouped:
    """A convolution in narrow groups: a thread computes one output, four input channels at a time.

    The weights are words ``[KH, KW, words of a group's channels, CO]``, flat, so that adjacent threads, which have
    adjacent output channels, read adjacent words.

    Attributes:
        shape: the extents.
        epilogue: the last step.
        pad_value: of the input's padding.
    """

    shape: ConvShape
    epilogue: Epilogue
    pad_value: int

    @property
    def words(self) -> int:
        """Words that hold the input channels of a group."""
        return ceil_div(self.shape.in_channels // self.shape.groups, 4)

    def function(self) -> tirx.PrimFunc:
        s = self.shape
        extents = (s.batch, s.out_height, s.out_width, s.out_channels)
        outputs = prod(extents)
        kernel = Kernel()
        with kernel:
            x = kernel.argument("x", (s.batch, s.height, s.width, s.in_channels), "uint8")
            weight = kernel.argument("weight", (prod(s.kernel) * self.words * s.out_channels,), "int32")
            finish = Finish(kernel, self.epilogue, extents, 1, s.out_channels, s.out_channels)
            finish.words = False
            with kernel.launch((ceil_div(outputs, THREADS),), THREADS) as ((block,), thread):
                output = bind(block * THREADS + thread)
                finish.start()
                with when(outputs % THREADS == 0 or output < outputs):
                    self._compute(x, weight, finish, output)
        return kernel.function()

    def _compute(self, x: tirx.Buffer, weight: tirx.Buffer, finish: Finish, output: Expr) -> None:
        s = self.shape
        in_channels = s.in_channels // s.groups
        aligned = in_channels % 4 == 0
        source = view(x, "int32" if aligned else "uint8")
        channel = bind(tirx.floormod(output, s.out_channels))
        pixel = bind(tirx.floordiv(output, s.out_channels))
        column = bind(tirx.floormod(pixel, s.out_width))
        row = bind(tirx.floormod(tirx.floordiv(pixel, s.out_width), s.out_height))
        image = tirx.floordiv(pixel, s.out_width * s.out_height) * (s.height * s.width * s.in_channels)
        first = bind(image + tirx.floordiv(channel, s.out_channels // s.groups) * in_channels)
        total = registers(1)
        store(total, 0, 0)

        def word_at(place: Expr, word: Expr | int, inside: Expr | bool) -> Expr:
            """Four channels of a pixel; those beyond the group's have weights of 0, and are not read."""
            if aligned:
                value = source[tirx.floordiv(place, 4) + word]
                return value if inside is True else tirx.if_then_else(inside, value, repeated(self.pad_value))
            result: Expr = tirx.const(0, "int32")
            for k in range(4):
                present = True if in_channels % 4 == 0 else word * 4 + k < in_channels
                if present is False:
                    continue
                condition = every([inside, present])
                result = result | placed(condition, source[place + word * 4 + k], self.pad_value, k)
            return result

        with T.serial(0, s.kernel[0]) as i, T.serial(0, s.kernel[1]) as j:
            y = bind(row * s.strides[0] + i * s.dilation[0] - s.padding[0])
            z = bind(column * s.strides[1] + j * s.dilation[1] - s.padding[1])
            inside = every([y >= 0, y < s.height, z >= 0, z < s.width] if any(s.padding) else [])
            place = bind(first + (y * s.width + z) * s.in_channels)
            with T.serial(0, self.words) as word:
                product = ((i * s.kernel[1] + j) * self.words + word) * s.out_channels + channel
                value = word_at(place, word, inside)
                dot = tirx.call_pure_extern(
                    "int32", "qc_dp4a", value.astype("uint32"), weight[product], total[0]
                )
                store(total, 0, dot)
        finish.write(pixel, 0, channel, [total[0]])


@dataclass(frozen=True)
class Rows:
    """A matrix product of few rows: a warp computes one output, its lanes share k.

    The weights are words ``[CO, depth / 4]``, flat.

    Attributes:
        rows: of the activations.
        depth: of k, in the activations.
        packed: of k, in the weights: filled up to a multiple of 16.
        channels: output channels.
        epilogue: the last step.
    """

    rows: int
    depth: int
    packed: int
    channels: int
    epilogue: Epilogue

    def function(self) -> tirx.PrimFunc:
        warps = THREADS // WARP
        kernel = Kernel()
        with kernel:
            x = kernel.argument("x", (self.rows, self.depth), "uint8")
            weight = kernel.argument("weight", (self.channels * self.packed // 4,), "int32")
            finish = Finish(
                kernel, self.epilogue, (self.rows, self.channels), 1, self.channels, self.channels
            )
            finish.words = False
            grid = (ceil_div(self.channels, warps), self.rows)
            with kernel.launch(grid, THREADS) as ((block, row), thread):
                lane = bind(tirx.floormod(thread, WARP))
                channel = bind(block * warps + tirx.floordiv(thread, WARP))
                finish.start()
                with when(self.channels % warps == 0 or channel < self.channels):
                    total = registers(1)
                    store(total, 0, 0)
                    self._sum(
                        view(x, "int32" if self.depth % 4 == 0 else "uint8"),
                        weight,
                        total,
                        lane,
                        channel,
                        row,
                    )
                    store(total, 0, tirx.call_extern("int32", "qc_warp_sum", total[0]))
                    with when(tirx.EQ(lane, 0)):
                        finish.write(row, 0, channel, [total[0]])
        return kernel.function()

    def _sum(
        self, x: tirx.Buffer, weight: tirx.Buffer, total: tirx.Buffer, lane: Expr, channel: Expr, row: Expr
    ) -> None:
        """A lane's share of the sum: words of k, 32 apart, so that lanes read adjacent ones."""
        words = ceil_div(self.depth, 4)
        with T.serial(0, ceil_div(words, WARP)) as step:
            word = bind(step * WARP + lane)
            with when(words % WARP == 0 or word < words):
                if self.depth % 4 == 0:
                    value = x[row * (self.depth // 4) + word]
                else:
                    value = tirx.const(0, "int32")
                    for k in range(4):
                        place = word * 4 + k
                        value = value | placed(place < self.depth, x[row * self.depth + place], 0, k)
                dot = tirx.call_pure_extern(
                    "int32",
                    "qc_dp4a",
                    value.astype("uint32"),
                    weight[channel * (self.packed // 4) + word],
                    total[0],
                )
                store(total, 0, dot)
