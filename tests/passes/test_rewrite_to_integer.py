from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qc_modules import assert_equal, const, dq, dq_weight, in_thread, make, operators, q
from tvm import relax

from qcompiler import operators as qc
from qcompiler.passes.fold_scales import fold, fold_addition
from qcompiler.passes.graph import bindings, op_name
from qcompiler.passes.quantized import Affine, Weight
from qcompiler.passes.rewrite_to_integer import RewriteToInteger
from qcompiler.reference import interpret

op = relax.op
IMAGE = ((1, 4, 6, 6), "uint8")
ROWS = ((3, 8), "uint8")
X, OUT, RESIDUAL = (Affine(float(np.float32(s)), z) for s, z in ((0.02, 3), (0.05, 9), (0.03, 200)))
RNG = np.random.default_rng(0)
WEIGHT = RNG.integers(-127, 128, (6, 4, 3, 3)).astype(np.int8)
SCALES = RNG.uniform(0.01, 0.02, 6).astype(np.float32)
BIAS = RNG.normal(size=6).astype(np.float32)
FOLDED = Weight(WEIGHT, SCALES.astype(np.float64))


def real(x: relax.Expr, affine: Affine = X) -> relax.Expr:
    return dq(x, affine.scale, affine.zero_point)


def conv(emit: Any, x: relax.Expr, weight: Any = None, bias: bool = True) -> relax.Var:
    y = emit(
        op.nn.conv2d(
            emit(real(x)), emit(dq_weight(WEIGHT, SCALES) if weight is None else weight), padding=(1, 1)
        )
    )
    return emit(op.add(y, const(BIAS.reshape(1, 6, 1, 1)))) if bias else y


def out(emit: Any, y: relax.Expr) -> relax.Expr:
    return q(emit(y) if isinstance(y, relax.Call) else y, OUT.scale, OUT.zero_point)


def qc_conv(
    x: relax.Expr, *residual: relax.Expr, lo: int = 0, hi: int = 255, dtype: str = "uint8"
) -> relax.Call:
    folded = fold(FOLDED, BIAS.astype(np.float64), X, OUT.scale if dtype == "uint8" else 1.0,
                  RESIDUAL if residual else None)  # fmt: skip
    args = [x, const(folded.weight), const(folded.bias), const(folded.multiplier), *residual]
    if folded.residual is not None:
        args += [const(folded.residual.multiplier), const(folded.residual.offset)]
    return qc.call(
        "qc.conv2d", args, strides=[1, 1], padding=[1, 1, 1, 1], dilation=[1, 1], groups=1, layout="NCHW",
        pad_value=X.zero_point, zero_point=OUT.zero_point if dtype == "uint8" else 0, lo=lo, hi=hi,
        residual_shift=folded.residual.shift if folded.residual else 0, out_dtype=dtype,
        accumulator_bound=folded.accumulator_bound,
    )  # fmt: skip


def test_convolution() -> None:
    after = RewriteToInteger()(make(lambda e, x: out(e, conv(e, x)), IMAGE))
    assert_equal(after, make(lambda e, x: qc_conv(x), IMAGE))


def test_relu_and_clip_are_bounds() -> None:
    after = RewriteToInteger()(make(lambda e, x: out(e, op.nn.relu(conv(e, x))), IMAGE))
    assert_equal(after, make(lambda e, x: qc_conv(x, lo=9), IMAGE))
    after = RewriteToInteger()(make(lambda e, x: out(e, op.clip(conv(e, x), 0, 6)), IMAGE))
    assert_equal(after, make(lambda e, x: qc_conv(x, lo=9, hi=129), IMAGE))


@pytest.mark.parametrize("flipped", [False, True])
def test_a_residual_joins_the_convolution(flipped: bool) -> None:
    def before(emit, x, r):  # type: ignore[no-untyped-def]
        terms = [conv(emit, x), emit(real(r, RESIDUAL))]
        return out(emit, op.nn.relu(emit(op.add(*(terms[::-1] if flipped else terms)))))

    residual = ((1, 6, 6, 6), "uint8")
    after = RewriteToInteger()(make(before, IMAGE, residual))
    assert_equal(after, make(lambda e, x, r: qc_conv(x, r, lo=9), IMAGE, residual))


def test_a_convolution_that_leaves_gives_float32() -> None:
    after = RewriteToInteger()(make(lambda e, x: conv(e, x), IMAGE))
    assert_equal(after, make(lambda e, x: qc_conv(x, dtype="float32"), IMAGE))


def test_linear_on_its_weights_as_pytorch_stores_them() -> None:
    weight = RNG.integers(-127, 128, (5, 8)).astype(np.int8)

    def before(emit, x):  # type: ignore[no-untyped-def]
        transposed = emit(op.permute_dims(emit(dq_weight(weight, SCALES[:5])), [1, 0]))
        return out(emit, op.add(emit(op.matmul(emit(real(x)), transposed)), const(BIAS[:5])))

    folded = fold(Weight(weight, SCALES[:5].astype(np.float64)), BIAS[:5].astype(np.float64), X, OUT.scale)
    expected = make(
        lambda e, x: qc.call(
            "qc.dense", [x, const(folded.weight), const(folded.bias), const(folded.multiplier)],
            zero_point=OUT.zero_point, lo=0, hi=255, residual_shift=0, out_dtype="uint8",
            accumulator_bound=folded.accumulator_bound,
        ),
        ROWS,
    )  # fmt: skip
    assert_equal(RewriteToInteger()(make(before, ROWS)), expected)


@pytest.mark.parametrize(("operator", "sign"), [(op.add, 1), (op.subtract, -1)])
def test_sum(operator: Any, sign: int) -> None:
    before = make(
        lambda e, a, b: out(e, op.nn.relu(e(operator(e(real(a)), e(real(b, RESIDUAL)))))), ROWS, ROWS
    )
    folded = fold_addition(X, RESIDUAL, OUT, sign)
    assert folded is not None
    expected = make(
        lambda e, a, b: qc.call(
            "qc.add", [a, b], a_multiplier=folded.a_multiplier, b_multiplier=folded.b_multiplier,
            offset=folded.offset, shift=folded.shift, lo=9, hi=255,
        ),
        ROWS, ROWS,
    )  # fmt: skip
    assert_equal(RewriteToInteger()(before), expected)


def test_product() -> None:
    before = make(lambda e, a, b: out(e, op.multiply(e(real(a)), e(real(b, RESIDUAL)))), ROWS, ROWS)
    multiplier = float(np.float32(X.scale * RESIDUAL.scale / OUT.scale))
    expected = make(
        lambda e, a, b: qc.call(
            "qc.mul", [a, b], a_zero_point=3, b_zero_point=200, multiplier=multiplier, zero_point=9, lo=0, hi=255
        ),
        ROWS, ROWS,
    )  # fmt: skip
    assert_equal(RewriteToInteger()(before), expected)


def average(
    x: relax.Expr, counts: np.ndarray, size: list[int], strides: list[int], padding: list[int]
) -> relax.Call:
    return qc.call(
        "qc.avg_pool2d", [x, const((X.scale / OUT.scale / counts).astype(np.float32))], pool_size=size,
        strides=strides, padding=padding, layout="NCHW", input_zero_point=3, zero_point=9, lo=0, hi=255,
    )  # fmt: skip


@pytest.mark.parametrize("included", [True, False])
def test_the_divisor_of_an_average_counts_padding_as_asked(included: bool) -> None:
    def before(emit, x):  # type: ignore[no-untyped-def]
        pooled = op.nn.avg_pool2d(
            emit(real(x)), pool_size=(3, 3), strides=(2, 2), padding=(1, 1, 1, 1), ceil_mode=True,
            count_include_pad=included,
        )  # fmt: skip
        return out(emit, pooled)

    # Rows -1..1, 1..3, 3..5, and 5..7 of which 7 is past the padding.
    line = np.array([3.0, 3, 3, 2]) if included else np.array([2.0, 3, 3, 1])
    expected = make(lambda e, x: average(x, np.outer(line, line), [3, 3], [2, 2], [1] * 4), IMAGE)
    assert_equal(RewriteToInteger()(make(before, IMAGE)), expected)


def test_a_mean_over_space_is_a_global_average() -> None:
    before = make(lambda e, x: out(e, op.mean(e(real(x)), axis=[2, 3], keepdims=False)), IMAGE)
    pooled = average
    expected = make(
        lambda e, x: op.reshape(e(pooled(x, np.full((1, 1), 36.0), [6, 6], [6, 6], [0] * 4)), (1, 4)), IMAGE
    )
    assert_equal(RewriteToInteger()(before), expected)


def test_a_chain_of_elementwise_operators_is_a_table() -> None:
    after = RewriteToInteger()(make(lambda e, x: out(e, op.nn.silu(e(op.negative(e(real(x)))))), ROWS))
    assert operators(after) == ["qc.lut"]


def test_requantization_to_the_same_parameters_vanishes() -> None:
    after = RewriteToInteger()(make(lambda e, x: q(e(real(x)), X.scale, X.zero_point), ROWS))
    assert operators(after) == []


def test_clamps_that_exclude_each_other() -> None:
    def before(emit, a, b):  # type: ignore[no-untyped-def]
        total = emit(op.add(emit(real(a)), emit(real(b))))
        return q(emit(op.clip(emit(op.nn.relu(total)), -2, -1)), 0.05, 100)

    after = RewriteToInteger()(make(before, ROWS, ROWS))
    data = [np.full((3, 8), 200, np.uint8)] * 2
    result = in_thread(lambda: interpret(after, data))[0].array
    np.testing.assert_array_equal(result, 80)


def huge(emit: Any, x: relax.Expr) -> relax.Expr:
    weight = np.full((2, 2**17), 127, np.int8)
    transposed = emit(op.permute_dims(emit(dq_weight(weight, [1e-3, 1e-3])), [1, 0]))
    return out(emit, op.matmul(emit(real(x)), transposed))


def far_apart(emit: Any, x: relax.Expr) -> relax.Expr:
    other = emit(dq(emit(q(emit(op.exp(emit(real(x)))), 1e-6)), 1e-6))
    return q(emit(op.add(emit(dq(x, 1e6)), other)), 1e-6)


REFUSALS: dict[str, tuple[Any, Any, str]] = {
    "weights with a zero point": (
        lambda e, x: out(e, conv(e, x, dq_weight(WEIGHT, SCALES, np.ones(6)))), IMAGE, "weights have a zero point"),
    "uint8 weights": (
        lambda e, x: out(e, conv(e, x, dq_weight(np.abs(WEIGHT).astype(np.uint8), SCALES))), IMAGE,
        "weights are uint8; integer kernels take int8"),
    "float weights": (
        lambda e, x: out(e, conv(e, x, op.add(const(WEIGHT.astype(np.float32)), const(1.0, "float32")))), IMAGE,
        "weights are not quantized"),
    "scales along the inputs": (
        lambda e, x: out(e, conv(e, x, dq_weight(WEIGHT, SCALES[:4], axis=1))), IMAGE, "scales along axis 1"),
    "an input in float": (
        lambda e, x: out(e, op.nn.conv2d(e(op.exp(e(real(x)))), e(dq_weight(WEIGHT, SCALES)))), IMAGE,
        "input is not quantized"),
    "activations of a scale a channel": (
        lambda e, x: op.quantize(e(op.exp(e(real(x)))), const(SCALES[:4]), const(np.zeros(4, np.int32)), 1, "uint8"),
        IMAGE, "one scale a channel; activations have one a tensor"),
    "accumulators beyond int32": (huge, ((1, 2**17), "uint8"), str(255 * 127 * 2**17)),
    "scales far apart": (far_apart, ROWS, "too far apart"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_are_noted_and_stay_in_float(name: str) -> None:
    build, shape, reason = REFUSALS[name]
    rewrite = RewriteToInteger()
    after = rewrite(make(build, shape))
    assert any(reason in note for note in rewrite.notes.values()), rewrite.notes
    left = {op_name(b.value) for b in bindings(after)}
    assert left & {"relax.nn.conv2d", "relax.matmul", "relax.add", "relax.quantize"}
    assert not left & {"qc.conv2d", "qc.dense", "qc.add"}


def test_what_is_not_quantized_is_left_alone() -> None:
    def build(emit, x):  # type: ignore[no-untyped-def]
        y = emit(op.nn.conv2d(x, const(WEIGHT.astype(np.float32))))
        return op.nn.softmax(emit(op.add(y, const(BIAS.reshape(1, 6, 1, 1)))), axis=1)

    module = make(build, ((1, 4, 6, 6), "float32"))
    assert_equal(RewriteToInteger()(module), module)
