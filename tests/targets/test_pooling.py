"""Pooling kernels against the reference interpreter, in every bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qc_modules import CUDA_TARGET, TARGETS, Case, Suite, const
from tvm import relax

from qcompiler import operators

Shape = tuple[int, int, int, int]
Pair = tuple[int, int]


def extent(size: int, window: int, stride: int, pads: int, dilation: int, up: bool) -> int:
    span = size + pads - dilation * (window - 1) - 1
    return (-(-span // stride) if up else span // stride) + 1


def max_pool(name: str, x: Shape, window: Pair = (2, 2), strides: Pair = (2, 2), padding: Shape = (0, 0, 0, 0),
             dilation: Pair = (1, 1), up: bool = False) -> Case:  # fmt: skip
    out = [
        extent(x[2 + k], window[k], strides[k], padding[k] + padding[2 + k], dilation[k], up) for k in (0, 1)
    ]

    def build(_: Any, data: relax.Expr) -> relax.Expr:
        return operators.call(
            "qc.max_pool2d", [data], pool_size=list(window), strides=list(strides), padding=list(padding),
            dilation=list(dilation), layout="NCHW", out_size=out,
        )  # fmt: skip

    return Case(name, ((x, "uint8"),), build)


def avg_pool(name: str, x: Shape, window: Pair = (2, 2), strides: Pair = (2, 2), padding: Shape = (0, 0, 0, 0),
             up: bool = False, zero_points: Pair = (13, 7), scale: float = 1.0, bounds: Pair = (0, 255)) -> Case:  # fmt: skip
    out = [extent(x[2 + k], window[k], strides[k], padding[k] + padding[2 + k], 1, up) for k in (0, 1)]
    divisors = np.random.default_rng(0).integers(1, window[0] * window[1] + 1, out)
    multiplier = (scale / divisors).astype(np.float32)

    def build(_: Any, data: relax.Expr) -> relax.Expr:
        return operators.call(
            "qc.avg_pool2d", [data, const(multiplier)], pool_size=list(window), strides=list(strides),
            padding=list(padding), layout="NCHW", input_zero_point=zero_points[0], zero_point=zero_points[1],
            lo=bounds[0], hi=bounds[1],
        )  # fmt: skip

    return Case(name, ((x, "uint8"),), build)


SUITE = Suite(
    [
        max_pool("max 2x2", (1, 16, 8, 8)),
        max_pool("max 3x3 padded", (1, 24, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1)),
        max_pool("max ceil", (1, 16, 8, 10), (3, 3), (2, 2), up=True),
        max_pool("max ceil and padded", (3, 7, 6, 9), (3, 3), (2, 2), (1, 1, 1, 1), up=True),
        max_pool("max asymmetric", (1, 5, 7, 8), (3, 2), (1, 2), (0, 1, 2, 0)),
        max_pool("max dilated", (1, 16, 9, 9), (3, 3), (1, 1), (1, 1, 1, 1), (2, 2)),
        max_pool("max of the whole", (2, 58, 7, 7), (7, 7), (1, 1)),
        max_pool("max of a large window", (1, 16, 12, 12), (9, 9), (1, 1), (4, 4, 4, 4)),
        max_pool("max of a large window without padding", (1, 16, 12, 12), (9, 9), (1, 1)),
        max_pool("max of one channel", (1, 1, 6, 13), (2, 2), (2, 2)),
        avg_pool("avg 2x2", (1, 16, 8, 8)),
        avg_pool("avg padded", (1, 24, 9, 11), (3, 3), (2, 2), (1, 1, 1, 1)),
        avg_pool("avg ceil and padded", (3, 7, 6, 9), (3, 3), (2, 2), (1, 1, 1, 1), up=True),
        avg_pool("avg asymmetric", (1, 5, 7, 8), (3, 2), (1, 2), (0, 1, 2, 0)),
        avg_pool("avg global", (2, 58, 7, 7), (7, 7), (7, 7)),
        avg_pool("avg global of one channel", (1, 1, 13, 5), (13, 5), (1, 1)),
        avg_pool("avg global of a large image", (1, 16, 40, 40), (40, 40), (40, 40), zero_points=(255, 255)),
        avg_pool("avg huge", (1, 16, 8, 8), scale=1e12),
        avg_pool("avg bounds", (1, 16, 8, 8), bounds=(7, 50), zero_points=(0, 7)),
    ]
)


@pytest.mark.parametrize("target", [*TARGETS, "arm-neon", CUDA_TARGET])
@pytest.mark.parametrize("name", SUITE.cases)
def test_equals_the_reference(name: str, target: str) -> None:
    SUITE.check(name, target)


PAST_THE_EDGE = Suite(
    [
        max_pool("max of a large window, ceil", (1, 16, 12, 13), (9, 9), (2, 2), up=True),
        avg_pool("avg ceil", (1, 16, 8, 10), (3, 3), (2, 2), up=True),
    ]
)


@pytest.mark.parametrize("name", PAST_THE_EDGE.cases)
def test_windows_past_the_edge(name: str) -> None:
    PAST_THE_EDGE.check(name, "native")
