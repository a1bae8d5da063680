"""Depthwise convolutions: a thread computes four adjacent channels of a pixel.

A word of the image holds four channels. ``dp4a`` with a weight in one of its bytes and zeros in the others multiplies
one channel and adds it to its sum; so nothing is unpacked, and the instruction takes no longer than a multiplication.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from qcompiler.targets.cpu.shapes import ConvShape, ceil_div
from qcompiler.targets.cuda.direct import THREADS
from qcompiler.targets.cuda.finish import Epilogue, Finish
from qcompiler.targets.cuda.kernel import Kernel, bind, every, placed, registers, repeated, store, view, when
from qcompiler.targets.cuda.layouts import as_words


def pack_weight(weight: NDArray[np.int8]) -> NDArray[np.int32]:
    """``[C, 1, KH, KW]`` as words ``[KH * KW, C]``, flat: channel c has its weight in byte ``c % 4``, zeros elsewhere."""
    channels = weight.shape[0]
    taps = weight.reshape(channels, -1).T
    words = np.zeros((taps.shape[0], channels, 4), np.int8)
    words[:, np.arange(channels), np.arange(channels) % 4] = taps
    return as_words(words)


@dataclass(frozen=True)
class Depthwise:
    """A depthwise convolution.

    Attributes:
        shape: the extents.
        epilogue: the last step.
        pad_value: of the input's padding.
    """

    shape: ConvShape
    epilogue: Epilogue
    pad_value: int

    def function(self) -> tirx.PrimFunc:
        s = self.shape
        extents = (s.batch, s.out_height, s.out_width, s.out_channels)
        quads = ceil_div(s.out_channels, 4)
        tasks = prod(extents[:3]) * quads
        kernel = Kernel()
        with kernel:
            x = kernel.argument("x", (s.batch, s.height, s.width, s.in_channels), "uint8")
            weight = kernel.argument("weight", (prod(s.kernel) * s.out_channels,), "int32")
            finish = Finish(kernel, self.epilogue, extents, 1, s.out_channels, s.out_channels)
            with kernel.launch((ceil_div(tasks, THREADS),), THREADS) as ((block,), thread):
                task = bind(block * THREADS + thread)
                finish.start()
                with when(tasks % THREADS == 0 or task < tasks):
                    pixel, channel = bind(tirx.floordiv(task, quads)), bind(tirx.floormod(task, quads) * 4)
                    self._compute(x, weight, finish, pixel, channel)
        return kernel.function()

    def _compute(
        self, x: tirx.Buffer, weight: tirx.Buffer, finish: Finish, pixel: Expr, channel: Expr
    ) -> None:
        s = self.shape
        aligned = s.out_channels % 4 == 0
        source = view(x, "int32" if aligned else "uint8")
        column = bind(tirx.floormod(pixel, s.out_width))
        row = bind(tirx.floormod(tirx.floordiv(pixel, s.out_width), s.out_height))
        image = tirx.floordiv(pixel, s.out_width * s.out_height) * (s.height * s.width * s.in_channels)
        first = bind(image + channel)
        sums = registers(4)
        for k in range(4):
            store(sums, k, 0)
        with T.serial(0, s.kernel[0]) as i, T.serial(0, s.kernel[1]) as j:
            y = bind(row * s.strides[0] + i * s.dilation[0] - s.padding[0])
            z = bind(column * s.strides[1] + j * s.dilation[1] - s.padding[1])
            inside = every([y >= 0, y < s.height, z >= 0, z < s.width] if any(s.padding) else [])
            place = bind(first + (y * s.width + z) * s.in_channels)
            tap = (i * s.kernel[1] + j) * s.out_channels + channel
            if aligned:
                word = source[tirx.floordiv(place, 4)]
                word = bind(
                    word if inside is True else tirx.if_then_else(inside, word, repeated(self.pad_value))
                )
            for k in range(4):
                with when(aligned or channel + k < s.out_channels):
                    if not aligned:
                        word = placed(inside, source[place + k], self.pad_value, k)
                    dot = tirx.call_pure_extern(
                        "int32", "qc_dp4a", word.astype("uint32"), weight[tap + k], sums[k]
                    )
                    store(sums, k, dot)
        finish.write(pixel, 0, channel, [sums[k] for k in range(4)])
