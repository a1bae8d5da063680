"""Convolution kernels against the reference interpreter, in every bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qc_modules import ARM_TARGETS, CUDA_TARGET, TARGETS, Case, Suite, const
from tvm import relax

from qcompiler import operators


def conv(
    name: str, x: tuple[int, int, int, int], out: int, kernel: tuple[int, int] = (3, 3), *,
    strides: tuple[int, int] = (1, 1), padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1), groups: int = 1, residual: bool = False, dtype: str = "uint8",
    scale: float = 1.0, bounds: tuple[int, int] = (0, 255), extreme: bool = False,
) -> Case:  # fmt: skip
    """A convolution with random weights; with ``extreme`` all of them are 127 or -127, a sign a channel."""
    rng = np.random.default_rng(len(name))
    shape = (out, x[1] // groups, *kernel)
    if extreme:
        weight = np.broadcast_to(np.where(np.arange(out) % 2, 127, -127).reshape(-1, 1, 1, 1), shape)
    else:
        weight = rng.integers(-127, 128, shape)
    weight = np.ascontiguousarray(weight).astype(np.int8)
    taps = int(np.prod(shape[1:]))
    bias = rng.integers(-(2**15), 2**15, out).astype(np.int32)
    multiplier = (rng.uniform(0.2, 1.0, out) * scale / (100 * np.sqrt(taps))).astype(np.float32)
    height = (x[2] + padding[0] + padding[2] - dilation[0] * (kernel[0] - 1) - 1) // strides[0] + 1
    width = (x[3] + padding[1] + padding[3] - dilation[1] * (kernel[1] - 1) - 1) // strides[1] + 1
    inputs: list[Any] = [(x, "uint8")]
    share = 0
    constants = []
    if residual:
        inputs.append(((x[0], out, height, width), "uint8"))
        constants = [rng.integers(0, 2**22, out).astype(np.int32)]
        constants.append((-77 * constants[0] + 2**7).astype(np.int32))
        share = 256 * 2**22 >> 8
    bound = int(255 * np.abs(weight.astype(int)).reshape(out, -1).sum(1).max() + np.abs(bias).max() + share)

    def build(_: Any, data: relax.Expr, *more: relax.Expr) -> relax.Expr:
        args = [data, const(weight), const(bias), const(multiplier), *more, *(const(c) for c in constants)]
        return operators.call(
            "qc.conv2d", args, strides=list(strides), padding=list(padding), dilation=list(dilation), groups=groups,
            layout="NCHW", pad_value=93, zero_point=31, lo=bounds[0], hi=bounds[1], residual_shift=8 if residual else 0,
            out_dtype=dtype, accumulator_bound=bound,
        )  # fmt: skip

    return Case(name, tuple(inputs), build)


DENSE = [
    conv("1x1", (1, 64, 7, 7), 64, (1, 1)),
    conv("1x1 of prime widths", (1, 16, 5, 13), 48, (1, 1)),
    conv("1x1 strided", (1, 12, 9, 11), 20, (1, 1), strides=(2, 2)),
    conv("3x3 padded", (1, 16, 8, 14), 32, padding=(1, 1, 1, 1)),
    conv("3x3 batch 3", (3, 8, 5, 7), 16, padding=(1, 1, 1, 1), strides=(2, 2)),
    conv("3x3 one channel", (1, 1, 9, 17), 16, padding=(1, 1, 1, 1)),
    conv("3x3 three channels", (1, 3, 11, 19), 24, padding=(1, 1, 1, 1), strides=(2, 2)),
    conv("3x3 five to one", (1, 5, 6, 6), 1, padding=(1, 1, 1, 1)),
    conv("1x1 of 58 channels", (1, 58, 4, 7), 58, (1, 1)),
    conv("5x5 asymmetric padding", (1, 6, 9, 10), 10, (5, 5), padding=(0, 1, 3, 2)),
    conv("7x7 stem", (1, 3, 20, 23), 16, (7, 7), padding=(3, 3, 3, 3), strides=(2, 2)),
    conv("7x7 stem of whole tiles", (1, 3, 16, 28), 16, (7, 7), padding=(3, 3, 3, 3), strides=(2, 2)),
    conv("3x3 of one channel", (2, 1, 9, 14), 32),
    conv("1x7 of 6 channels", (1, 6, 5, 20), 16, (1, 7)),
    conv("3x3 dilated", (1, 8, 12, 13), 16, dilation=(2, 3), padding=(2, 3, 2, 3)),
    conv("1x7", (1, 8, 5, 17), 16, (1, 7), padding=(0, 3, 0, 3)),
    conv("kernel as large as the image", (2, 16, 4, 4), 10, (4, 4)),
    conv("one pixel", (1, 40, 1, 1), 24, (1, 1)),
    conv("extreme weights", (1, 64, 5, 5), 32, padding=(1, 1, 1, 1), extreme=True),
    conv("huge multiplier", (1, 16, 5, 5), 32, scale=1e9),
    conv("tiny multiplier", (1, 16, 5, 5), 32, scale=1e-30),
    conv("narrow bounds", (1, 16, 5, 5), 32, bounds=(31, 91)),
    conv("equal bounds", (1, 16, 5, 5), 32, bounds=(255, 255)),
    conv("float32 output", (1, 16, 5, 7), 30, dtype="float32"),
    conv("residual", (1, 16, 7, 9), 32, padding=(1, 1, 1, 1), residual=True),
    conv("residual of odd channels", (2, 7, 5, 11), 19, residual=True),
    conv("residual to float32", (1, 16, 5, 7), 32, residual=True, dtype="float32"),
]
GROUPED = [
    conv("groups of 8", (1, 32, 6, 7), 32, groups=4, padding=(1, 1, 1, 1)),
    conv("groups of 24", (1, 48, 6, 7), 48, groups=2, padding=(1, 1, 1, 1)),
    conv("groups of 3", (1, 18, 6, 7), 18, groups=6, padding=(1, 1, 1, 1)),
    conv("groups of 3, 1x1", (1, 9, 5, 7), 9, (1, 1), groups=3),
    conv("groups of 2 to 16", (1, 8, 6, 7), 64, groups=4, padding=(1, 1, 1, 1)),
    conv("groups of 6 to 32", (1, 12, 6, 7), 64, groups=2, padding=(1, 1, 1, 1), residual=True),
    conv("depthwise", (1, 32, 8, 9), 32, groups=32, padding=(1, 1, 1, 1)),
    conv("depthwise of 58", (1, 58, 7, 7), 58, groups=58, padding=(1, 1, 1, 1), strides=(2, 2)),
    conv("depthwise of 3, batch 3", (3, 3, 7, 11), 3, groups=3, padding=(1, 1, 1, 1)),
    conv("depthwise 5x5", (1, 24, 9, 13), 24, (5, 5), groups=24, padding=(2, 2, 2, 2)),
    conv("depthwise 7x7 to one pixel", (1, 20, 7, 7), 20, (7, 7), groups=20),
    conv("depthwise dilated", (1, 16, 9, 9), 16, groups=16, padding=(2, 2, 2, 2), dilation=(2, 2)),
    conv("depthwise asymmetric", (1, 16, 8, 8), 16, groups=16, padding=(0, 0, 1, 1), strides=(2, 2)),
    conv("depthwise residual", (1, 40, 5, 7), 40, groups=40, padding=(1, 1, 1, 1), residual=True),
    conv("depthwise float32", (1, 16, 5, 7), 16, groups=16, dtype="float32"),
    conv("depthwise 1x1", (1, 33, 5, 7), 33, (1, 1), groups=33),
    conv("channel multiplier 2", (1, 16, 6, 7), 32, groups=16, padding=(1, 1, 1, 1)),
    conv("channel multiplier 3 of 5", (1, 5, 6, 7), 15, groups=5, padding=(1, 1, 1, 1)),
]
SUITE = Suite([*DENSE, *GROUPED])


@pytest.mark.parametrize("target", [*TARGETS, *ARM_TARGETS, CUDA_TARGET])
@pytest.mark.parametrize("name", SUITE.cases)
def test_equals_the_reference(name: str, target: str) -> None:
    SUITE.check(name, target)
