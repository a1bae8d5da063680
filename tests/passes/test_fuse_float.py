from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import pytest
from qc_modules import assert_equal, const, make
from tvm import relax

from qcompiler import operators as qc
from qcompiler.passes.fuse_float import DropPrecision, FuseFloat

op = relax.op
IMAGE = ((1, 4, 5, 6), "float32")
RNG = np.random.default_rng(0)
WEIGHT = RNG.standard_normal((4, 4, 1, 1)).astype(np.float32)
BIAS = np.array([1.0, -2.0, 3.0, 0.5], np.float32)
CHANNELS = (1, 4, 1, 1)
MATRIX = ((3, 4), "float32")


def layer(x: relax.Expr, weight: Any, bias: Any, *residual: relax.Expr, lo: float = -inf, hi: float = inf) -> relax.Call:  # fmt: skip
    return qc.call(
        "qc.float_conv2d", [x, const(weight), const(bias), *residual], strides=[1, 1], padding=[0] * 4,
        dilation=[1, 1], groups=1, layout="NCHW", lo=lo, hi=hi, precision="float32", out_dtype="float32",
    )  # fmt: skip


def dense(x: relax.Expr, weight: Any, bias: Any, lo: float = -inf) -> relax.Call:
    return qc.call(
        "qc.float_dense", [x, const(weight), const(bias)], lo=lo, hi=inf, precision="float32", out_dtype="float32"
    )  # fmt: skip


def conv(x: relax.Expr) -> relax.Call:
    return op.nn.conv2d(x, const(WEIGHT))


def check(before: Callable[..., Any], expected: Callable[..., Any], *inputs: Any) -> None:
    assert_equal(FuseFloat(False)(make(before, *inputs)), make(expected, *inputs))


def test_a_bias_a_residual_and_a_clamp_join_their_convolution() -> None:
    check(
        lambda e, x, r: op.clip(e(op.add(e(op.add(e(conv(x)), const(BIAS.reshape(CHANNELS)))), r)), -1, 6),
        lambda e, x, r: layer(x, WEIGHT, BIAS, r, lo=-1.0, hi=6.0),
        IMAGE,
        IMAGE,
    )


def test_a_batch_norm_scales_the_weights() -> None:
    gamma, beta, mean = BIAS, BIAS * 2, BIAS - 1
    variance = np.array([4.0, 1.0, 0.25, 9.0], np.float32)
    scale = gamma / np.sqrt(variance.astype(np.float64))

    def before(emit, x):  # type: ignore[no-untyped-def]
        norm = op.nn.batch_norm(
            emit(conv(x)), const(gamma), const(beta), const(mean), const(variance), axis=1, epsilon=0.0, training=False
        )  # fmt: skip
        return op.nn.relu(emit(relax.TupleGetItem(emit(norm), 0)))

    weight = (WEIGHT * scale.reshape(-1, 1, 1, 1)).astype(np.float32)
    check(
        before,
        lambda e, x: layer(x, weight, (beta - mean * scale).astype(np.float32), lo=0.0),
        IMAGE,
    )


def test_a_batch_norm_of_something_else_is_a_product_and_a_sum() -> None:
    def before(emit, x):  # type: ignore[no-untyped-def]
        one = const(np.ones(4, np.float32))
        norm = op.nn.batch_norm(x, const(BIAS), one, const(np.zeros(4, np.float32)), one, axis=1, epsilon=0.0, training=False)  # fmt: skip
        return relax.TupleGetItem(emit(norm), 0)

    check(
        before,
        lambda e, x: op.add(
            e(op.multiply(x, const(BIAS.reshape(CHANNELS)))), const(np.ones(CHANNELS, np.float32))
        ),
        IMAGE,
    )


def test_a_constant_factor_scales_weights_and_bias() -> None:
    check(
        lambda e, x: op.multiply(e(op.add(e(conv(x)), const(BIAS.reshape(CHANNELS)))), const(np.float32(2))),
        lambda e, x: layer(x, WEIGHT * 2, BIAS * 2),
        IMAGE,
    )


def test_a_matrix_product_takes_its_weights_by_outputs() -> None:
    weight = RNG.standard_normal((4, 4)).astype(np.float32)
    check(
        lambda e, x: op.nn.relu(e(op.add(e(op.matmul(x, const(weight))), const(BIAS)))),
        lambda e, x: dense(x, weight.T, BIAS, lo=0.0),
        MATRIX,
    )


def test_nothing_joins_what_has_another_reader() -> None:
    def both(emit, first):  # type: ignore[no-untyped-def]
        y = emit(first)
        return op.nn.relu(y), op.nn.gelu(y)

    check(
        lambda e, x: both(e, conv(x)),
        lambda e, x: both(e, layer(x, WEIGHT, np.zeros(4, np.float32))),
        IMAGE,
    )


@pytest.mark.parametrize(
    "after",
    [
        pytest.param(lambda y: op.add(y, const(np.ones((1, 1, 5, 6), np.float32))), id="one value a pixel"),
        pytest.param(lambda y: op.nn.gelu(y), id="gelu"),
        pytest.param(lambda y: op.add(y, y), id="itself"),
    ],
)
def test_what_is_no_last_step_stays(after: Callable[[relax.Expr], relax.Expr]) -> None:
    check(
        lambda e, x: after(e(conv(x))),
        lambda e, x: after(e(layer(x, WEIGHT, np.zeros(4, np.float32)))),
        IMAGE,
    )


def test_nothing_is_added_after_a_clamp() -> None:
    check(
        lambda e, x: op.add(e(op.nn.relu(e(conv(x)))), const(BIAS.reshape(CHANNELS))),
        lambda e, x: op.add(
            e(layer(x, WEIGHT, np.zeros(4, np.float32), lo=0.0)), const(BIAS.reshape(CHANNELS))
        ),
        IMAGE,
    )


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(lambda e, x, w: op.nn.conv2d(x, w), id="weights computed at run time"),
        pytest.param(lambda e, x, w: op.nn.relu(x), id="no layer"),
    ],
)
def test_must_not_fire(before: Callable[..., Any]) -> None:
    check(before, before, IMAGE, ((4, 4, 1, 1), "float32"))


def rounded(x: relax.Expr, precision: str = "bfloat16") -> relax.Call:
    return qc.call("qc.round_float", [x], precision=precision)


def test_a_mark_gives_the_layer_its_precision_and_its_input() -> None:
    weights_only = FuseFloat(False)(make(lambda e, x: conv(e(rounded(x))), IMAGE))
    assert_equal(
        weights_only,
        make(lambda e, x: with_precision(layer(x, WEIGHT, np.zeros(4, np.float32)), "bfloat16"), IMAGE),
    )
    multiplied = FuseFloat(True)(make(lambda e, x: conv(e(rounded(x))), IMAGE))
    assert_equal(
        multiplied,
        make(
            lambda e, x: with_precision(
                layer(e(qc.call("qc.to_bfloat16", [x])), WEIGHT, np.zeros(4, np.float32)), "bfloat16"
            ),
            IMAGE,
        ),
    )


def with_precision(call: relax.Call, precision: str) -> relax.Call:
    attrs = {**{str(k): v for k, v in call.attrs.items()}, "precision": precision}
    return qc.call(str(call.op.name), list(call.args), **attrs)


def test_marks_are_dropped_where_there_are_no_kernels() -> None:
    after = DropPrecision()(make(lambda e, x: conv(e(rounded(x))), IMAGE))
    assert_equal(after, make(lambda e, x: conv(x), IMAGE))
