"""Kernels that map and move bytes against the reference interpreter, in every bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qc_modules import CUDA_TARGET, TARGETS, Case, Suite, const
from tvm import relax

from qcompiler import operators

Shape = tuple[int, ...]


def add(name: str, a: Shape, b: Shape, multipliers: tuple[int, int] = (700, -300), shift: int = 10,
        offset: int = 40_000, bounds: tuple[int, int] = (0, 255)) -> Case:  # fmt: skip
    def build(_: Any, x: relax.Expr, y: relax.Expr) -> relax.Expr:
        return operators.call(
            "qc.add", [x, y], a_multiplier=multipliers[0], b_multiplier=multipliers[1], offset=offset, shift=shift,
            lo=bounds[0], hi=bounds[1],
        )  # fmt: skip

    return Case(name, ((a, "uint8"), (b, "uint8")), build)


def mul(name: str, a: Shape, b: Shape, multiplier: float = 0.013, zero_point: int = 17,
        zeros: tuple[int, int] = (3, 250), bounds: tuple[int, int] = (0, 255)) -> Case:  # fmt: skip
    def build(_: Any, x: relax.Expr, y: relax.Expr) -> relax.Expr:
        return operators.call(
            "qc.mul", [x, y], a_zero_point=zeros[0], b_zero_point=zeros[1], multiplier=float(np.float32(multiplier)),
            zero_point=zero_point, lo=bounds[0], hi=bounds[1],
        )  # fmt: skip

    return Case(name, ((a, "uint8"), (b, "uint8")), build)


def quantize(name: str, shape: Shape, inv_scale: float, zero_point: int, reals: float,
             bounds: tuple[int, int] = (0, 255)) -> Case:  # fmt: skip
    def build(_: Any, x: relax.Expr) -> relax.Expr:
        return operators.call(
            "qc.quantize",
            [x],
            inv_scale=float(np.float32(inv_scale)),
            zero_point=zero_point,
            lo=bounds[0],
            hi=bounds[1],
        )

    return Case(name, ((shape, "float32"),), build, reals)


def quantize_then_pool(name: str, shape: Shape) -> Case:
    """An NCHW input whose quantization writes NHWC."""

    def build(emit: Any, x: relax.Expr) -> relax.Expr:
        y = emit(operators.call("qc.quantize", [x], inv_scale=1.5, zero_point=9, lo=0, hi=255))
        return operators.call(
            "qc.max_pool2d", [y], pool_size=[1, 1], strides=[1, 1], padding=[0] * 4, dilation=[1, 1], layout="NCHW",
            out_size=list(shape[2:]),
        )  # fmt: skip

    return Case(name, ((shape, "float32"),), build, 100.0)


def dequantize(name: str, shape: Shape, scale: float, zero_point: int) -> Case:
    def build(_: Any, x: relax.Expr) -> relax.Expr:
        return operators.call("qc.dequantize", [x], scale=float(np.float32(scale)), zero_point=zero_point)

    return Case(name, ((shape, "uint8"),), build)


def lut(name: str, shape: Shape) -> Case:
    table = np.random.default_rng(1).permutation(256).astype(np.uint8)
    return Case(name, ((shape, "uint8"),), lambda _, x: operators.call("qc.lut", [x, const(table)]))


def concat(name: str, axis: int, *shapes: Shape) -> Case:
    inputs = tuple((shape, "uint8") for shape in shapes)
    return Case(name, inputs, lambda _, *xs: relax.op.concat(list(xs), axis=axis))


def pad(name: str, shape: Shape, *widths: int) -> Case:
    return Case(name, ((shape, "uint8"),), lambda _, x: relax.op.nn.pad(x, list(widths), "constant", 77.0))


def swap(name: str, shape: Shape) -> Case:
    axes = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    return Case(name, ((shape, "uint8"),), lambda _, x: relax.op.permute_dims(x, axes))


def before_a_window(name: str, shape: Shape, first: str) -> Case:
    """An operator whose result a convolution pads: its kernel writes the border."""
    table = np.random.default_rng(1).permutation(256).astype(np.uint8)
    channels = shape[1]
    weight = np.random.default_rng(2).integers(-127, 128, (channels, 1, 3, 5)).astype(np.int8)
    constants = (weight, np.zeros(channels, np.int32), np.full(channels, 0.01, np.float32))

    def build(emit: Any, x: relax.Expr) -> relax.Expr:
        if first == "lut":
            y = emit(operators.call("qc.lut", [x, const(table)]))
        else:
            y = emit(operators.call("qc.quantize", [x], inv_scale=1.3, zero_point=100, lo=0, hi=255))
        return operators.call(
            "qc.conv2d", [y, *(const(c) for c in constants)], strides=[1, 2], padding=[1, 2, 2, 1], dilation=[1, 1],
            groups=channels, layout="NCHW", pad_value=200, zero_point=100, lo=0, hi=255, residual_shift=0,
            out_dtype="uint8", accumulator_bound=255 * 127 * 15,
        )  # fmt: skip

    return Case(name, ((shape, "uint8" if first == "lut" else "float32"),), build, 90.0)


IMAGE = (2, 16, 5, 7)
SUITE = Suite(
    [
        add("add", IMAGE, IMAGE),
        add("add of prime size", (1, 3, 7, 11), (1, 3, 7, 11)),
        add("add one a channel", IMAGE, (2, 16, 1, 1)),
        add("add one a channel first", (1, 16, 1, 1), IMAGE),
        add("add one a column", IMAGE, (1, 1, 1, 7)),
        add("add of two ranks", (3, 5, 8), (8,)),
        add("add without shift", (3, 31), (3, 31), (1, 1), 0, -100),
        add("add near int32", (3, 32), (3, 32), (2**22, -(2**22)), 22, 2**20),
        add("add narrow", (3, 32), (3, 32), bounds=(10, 11)),
        mul("mul", IMAGE, IMAGE),
        mul("mul by a gate", IMAGE, (2, 16, 1, 1)),
        mul("mul by one", IMAGE, (1, 1, 1, 1)),
        mul("mul of prime size", (1, 3, 7, 11), (1, 3, 7, 11), bounds=(17, 90)),
        mul("mul with a tie at every product", (4, 64), (4, 64), 0.5, 128, (128, 128)),
        mul("mul huge", (4, 64), (4, 64), 1e9, 0),
        mul("mul vanishing", (4, 64), (4, 64), 1e-40, 200),
        quantize("quantize", (1, 3, 8, 9), 1.7, 100, 100.0),
        quantize("quantize ties", (37,), 1.0, 128, 100.0),
        quantize("quantize at the largest scale", (5, 32), 1e-3, 0, 1e6),
        quantize("quantize at the least scale", (5, 32), 1e6, 255, 1e-3),
        quantize("quantize narrow", (5, 32), 1.0, 7, 100.0, (7, 13)),
        quantize_then_pool("quantize to channels last", (1, 3, 8, 9)),
        quantize_then_pool("quantize to channels last, 13 columns", (2, 5, 6, 13)),
        quantize_then_pool("quantize to channels last, 32 columns", (1, 3, 4, 32)),
        quantize_then_pool("quantize of two channels to channels last", (2, 2, 5, 33)),
        dequantize("dequantize", (3, 7, 11), 0.37, 201),
        dequantize("dequantize to a vector", (64,), 1e-6, 0),
        dequantize("dequantize to huge", (1, 1), 1e36, 255),
        lut("lut", (1, 16, 5, 7)),
        lut("lut of one register", (64,)),
        lut("lut below a register", (3, 7)),
        lut("lut of 65", (65,)),
        lut("lut of many", (1, 64, 32, 17)),
        before_a_window("lut before a window", (2, 20, 6, 9), "lut"),
        before_a_window("lut before a window, whole vectors", (1, 64, 6, 8), "lut"),
        before_a_window("quantize before a window", (2, 4, 6, 19), "quantize"),
        before_a_window("quantize of many channels before a window", (1, 8, 6, 9), "quantize"),
        pad("pad of rows and columns", (2, 4, 5, 24), 0, 0, 1, 2, 3, 0, 0, 0),
        pad("pad of channels", (1, 4, 5, 3), 0, 0, 0, 0, 0, 0, 1, 1),
        pad("pad of a matrix", (4, 5), 1, 0, 0, 2),
        swap("shuffle of two groups", (1, 3, 5, 2, 58)),
        swap("shuffle of three groups", (2, 3, 1, 3, 20)),
        swap("transpose of many rows", (7, 9)),
        swap("transpose of two long rows", (2, 1003)),
        concat("concat rows", 0, (2, 8), (1, 8), (4, 8)),
        concat("concat last", 1, (3, 8), (3, 5), (3, 64), (3, 1)),
        concat("concat of vectors", 0, (17,), (3,)),
        concat("concat last of images", -1, (1, 2, 3, 8), (1, 2, 3, 7)),
    ]
)


@pytest.mark.parametrize("target", [*TARGETS, "arm-neon", CUDA_TARGET])
@pytest.mark.parametrize("name", SUITE.cases)
def test_equals_the_reference(name: str, target: str) -> None:
    SUITE.check(name, target)
