"""qc.conv2d and qc.dense against torch's int64 convolution and Python's own rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompiler.errors import VerificationError
from qcompiler.reference import accumulate

QUICK = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def requantized(acc: np.ndarray, multiplier: np.ndarray, zero_point: int, lo: int, hi: int) -> np.ndarray:
    """The epilogue, one Python integer at a time; the multiplier broadcasts."""
    out = np.empty(acc.shape, np.uint8)
    factors = np.broadcast_to(multiplier, acc.shape)
    for index in np.ndindex(*acc.shape):
        product = np.float32(int(acc[index])) * factors[index]
        assert product.dtype == np.float32
        out[index] = min(max(round(float(product)) + zero_point, lo), hi)
    return out


def convolved(x: np.ndarray, weight: np.ndarray, attrs: dict[str, Any]) -> np.ndarray:
    """Sums of an NCHW convolution, in int64 by torch."""
    top, left, bottom, right = attrs["padding"]
    padded = torch.nn.functional.pad(
        torch.from_numpy(x.astype(np.int64)), (left, right, top, bottom), value=attrs["pad_value"]
    )
    return torch.nn.functional.conv2d(
        padded,
        torch.from_numpy(weight.astype(np.int64)),
        stride=attrs["strides"],
        dilation=attrs["dilation"],
        groups=attrs["groups"],
    ).numpy()


def attributes(**changes: Any) -> dict[str, Any]:
    defaults = {
        "strides": [1, 1],
        "padding": [0, 0, 0, 0],
        "dilation": [1, 1],
        "groups": 1,
        "layout": "NCHW",
        "pad_value": 0,
        "zero_point": 0,
        "lo": 0,
        "hi": 255,
        "residual_shift": 0,
        "out_dtype": "uint8",
    }
    return defaults | changes


def to_nhwc(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


@st.composite
def convolutions(draw: st.DrawFn) -> dict[str, Any]:
    """A convolution on extreme or random values, with or without a residual."""
    integer = lambda lo, hi: draw(st.integers(lo, hi))  # noqa: E731
    groups = draw(st.sampled_from([1, 1, 2, 4]))
    depth, per_group = integer(1, 4), integer(1, 3)
    kernel, dilation = (integer(1, 3), integer(1, 3)), [integer(1, 2), integer(1, 2)]
    size = [integer(dilation[i] * (kernel[i] - 1) + 1, 8) for i in (0, 1)]
    rng = np.random.default_rng(integer(0, 2**32 - 1))
    activations, weights = draw(
        st.sampled_from([([0, 255], [-128, -127, 127]), ([255], [-127]), (range(256), range(-128, 128))])
    )
    x = rng.choice(list(activations), (integer(1, 2), groups * depth, *size)).astype(np.uint8)
    weight = rng.choice(list(weights), (groups * per_group, depth, *kernel)).astype(np.int8)
    attrs = attributes(
        strides=[integer(1, 3), integer(1, 3)],
        padding=[integer(0, 2) for _ in range(4)],
        dilation=dilation,
        groups=groups,
        pad_value=draw(st.sampled_from([0, 3, 255])),
        zero_point=draw(st.sampled_from([0, 7, 255])),
        lo=draw(st.sampled_from([0, 10])),
        hi=draw(st.sampled_from([200, 255])),
        residual_shift=integer(0, 20),
        out_dtype=draw(st.sampled_from(["uint8", "uint8", "float32"])),
    )
    limit = draw(st.sampled_from([100, 2**20, 2**30]))
    outputs = len(weight)
    return {
        "x": x,
        "weight": weight,
        "bias": rng.integers(-limit, limit, outputs).astype(np.int32),
        "multiplier": rng.choice([0.5, 2.0**-10, 0.25, 1 / 3, 1e-3, 1e-6], outputs).astype(np.float32),
        "residual_multiplier": rng.integers(-(2**22), 2**22, outputs).astype(np.int32),
        "residual_offset": rng.integers(-(2**20), 2**20, outputs).astype(np.int32),
        "attrs": attrs,
        "has_residual": draw(st.booleans()),
        "seed": integer(0, 1000),
    }


@QUICK
@given(convolutions())
def test_conv2d_is_the_formula_in_both_layouts(run_qc: Any, case: dict[str, Any]) -> None:
    attrs, parameters = case["attrs"], [case["weight"], case["bias"], case["multiplier"]]
    acc = convolved(case["x"], case["weight"], attrs) + case["bias"].astype(np.int64)[:, None, None]
    inputs, residual = [case["x"]], None
    if case["has_residual"]:
        residual = np.random.default_rng(case["seed"]).choice([0, 1, 254, 255], acc.shape).astype(np.uint8)
        factor, offset = (
            case[f"residual_{n}"].astype(np.int64)[:, None, None] for n in ("multiplier", "offset")
        )
        acc += (residual * factor + offset) >> attrs["residual_shift"]
        parameters += [residual, case["residual_multiplier"], case["residual_offset"]]
    multiplier = case["multiplier"][:, None, None]
    if attrs["out_dtype"] == "float32":
        expected = acc.astype(np.int32).astype(np.float32) * multiplier
    else:
        expected = requantized(acc, multiplier, attrs["zero_point"], attrs["lo"], attrs["hi"])

    actual = run_qc("qc.conv2d", inputs, parameters, **attrs)
    np.testing.assert_array_equal(actual, expected, strict=True)

    if residual is not None:
        parameters[3] = to_nhwc(residual)
    actual = run_qc("qc.conv2d", [to_nhwc(case["x"])], parameters, **attrs | {"layout": "NHWC"})
    np.testing.assert_array_equal(actual, to_nhwc(expected), strict=True)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("depth", [257, 514, 516, 600])
def test_conv2d_is_exact_around_the_limit_of_float32(run_qc: Any, layout: str, depth: int) -> None:
    # All of one sign, and odd: 600 * 255 * 127 - 1 is above 2**24 and no float32.
    x = np.full((1, depth, 1, 1), 255, np.uint8)
    x[0, 0] = 254
    weight = np.full((2, depth, 1, 1), 127, np.int8)
    weight[1] = -128
    weight[:, 1] = 126
    bias = np.array([1, -1], np.int32)
    acc = (x[0, :, 0, 0].astype(np.int64) * weight[:, :, 0, 0]).sum(axis=1) + bias
    expected = np.array([np.float32(int(v)) for v in acc]) * np.float32(1.0)
    given_x = x if layout == "NCHW" else to_nhwc(x)
    actual = run_qc(
        "qc.conv2d",
        [given_x],
        [weight, bias, np.ones(2, np.float32)],
        **attributes(layout=layout, out_dtype="float32"),
    )
    np.testing.assert_array_equal(actual.ravel(), expected)


def test_large_batches_are_done_in_parts(run_qc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (5, 3, 6, 6)).astype(np.uint8)
    weight = rng.integers(-127, 128, (4, 3, 3, 3)).astype(np.int8)
    parameters = [weight, np.zeros(4, np.int32), np.full(4, 1e-3, np.float32)]
    whole = run_qc("qc.conv2d", [x], parameters, **attributes(padding=[1, 1, 1, 1], zero_point=128))
    monkeypatch.setattr(accumulate, "PATCH_BYTES", 2 * 6 * 6 * 27 * 4)
    parts = run_qc("qc.conv2d", [x], parameters, **attributes(padding=[1, 1, 1, 1], zero_point=128))
    np.testing.assert_array_equal(parts, whole)


@pytest.mark.parametrize(
    ("acc", "expected"), [(1, 0), (3, 2), (5, 2), (7, 4), (-1, 0), (-3, -2), (-5, -2), (-7, -4)]
)
def test_ties_round_to_even(run_qc: Any, acc: int, expected: int) -> None:
    x, weight = np.ones((1, 1), np.uint8), np.zeros((1, 1), np.int8)
    parameters = [weight, np.array([acc], np.int32), np.array([0.5], np.float32)]
    actual = run_qc(
        "qc.dense", [x], parameters, zero_point=100, lo=0, hi=255, residual_shift=0, out_dtype="uint8"
    )
    assert int(actual[0, 0]) - 100 == expected


@QUICK
@given(st.integers(1, 3), st.integers(1, 700), st.integers(1, 5), st.booleans(), st.integers(0, 2**32 - 1))
def test_dense_is_the_formula(
    run_qc: Any, rows: int, depth: int, outputs: int, has_residual: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.choice([0, 255, 128], (2, rows, depth)).astype(np.uint8)
    weight = rng.choice([-128, -127, 127], (outputs, depth)).astype(np.int8)
    bias = rng.integers(-(2**20), 2**20, outputs).astype(np.int32)
    multiplier = rng.uniform(1e-6, 1e-4, outputs).astype(np.float32)
    acc = np.array(
        [[[sum(int(a) * int(b) for a, b in zip(r, w, strict=True)) for w in weight] for r in m] for m in x]
    )
    acc = acc + bias
    parameters = [weight, bias, multiplier]
    if has_residual:
        residual = rng.integers(0, 256, acc.shape).astype(np.uint8)
        factor = rng.integers(-(2**22), 2**22, outputs).astype(np.int32)
        offset = np.full(outputs, 1 << 9, np.int32)
        acc = acc + ((residual * factor.astype(np.int64) + offset) >> 10)
        parameters += [residual, factor, offset]
    attrs = {"zero_point": 128, "lo": 0, "hi": 255, "residual_shift": 10}
    actual = run_qc("qc.dense", [x], parameters, **attrs, out_dtype="uint8")
    np.testing.assert_array_equal(actual, requantized(acc, multiplier, 128, 0, 255), strict=True)
    actual = run_qc("qc.dense", [x], parameters, **attrs, out_dtype="float32")
    np.testing.assert_array_equal(actual, acc.astype(np.int32).astype(np.float32) * multiplier, strict=True)


def test_weights_may_be_inputs(run_qc: Any) -> None:
    x, weight = np.array([[255, 1]], np.uint8), np.array([[1, -1]], np.int8)
    inputs = [x, weight, np.array([3], np.int32), np.array([1.0], np.float32)]
    actual = run_qc("qc.dense", inputs, zero_point=0, lo=0, hi=255, residual_shift=0, out_dtype="float32")
    assert actual.tolist() == [[257.0]]


def test_an_accumulator_beyond_int32_raises(run_qc: Any) -> None:
    weight = np.array([[127]], np.int8)
    bias = np.array([2**31 - 1 - 126], np.int32)
    parameters = [weight, bias, np.ones(1, np.float32)]
    attrs = {"zero_point": 0, "lo": 0, "hi": 255, "residual_shift": 0, "out_dtype": "uint8"}
    run_qc("qc.dense", [np.zeros((1, 1), np.uint8)], parameters, **attrs)
    with pytest.raises(VerificationError, match="overflows int32"):
        run_qc("qc.dense", [np.ones((1, 1), np.uint8)], parameters, **attrs)


def test_a_residual_beyond_int32_raises(run_qc: Any) -> None:
    factor = np.array([2**24], np.int32)
    parameters = [np.zeros((1, 1), np.int8), np.zeros(1, np.int32), np.ones(1, np.float32)]
    attrs = {"zero_point": 0, "lo": 0, "hi": 255, "residual_shift": 24, "out_dtype": "float32"}
    for residual, fits in ((127, True), (255, False)):
        tail = [np.array([[residual]], np.uint8), factor, np.zeros(1, np.int32)]
        if fits:
            assert (
                run_qc("qc.dense", [np.zeros((1, 1), np.uint8)], parameters + tail, **attrs).item() == 127.0
            )
        else:
            with pytest.raises(VerificationError, match="residual"):
                run_qc("qc.dense", [np.zeros((1, 1), np.uint8)], parameters + tail, **attrs)


def test_wrong_dtypes_and_shapes_are_refused(run_qc: Any) -> None:
    x, weight = np.zeros((1, 2), np.uint8), np.zeros((3, 2), np.int8)
    attrs = {"zero_point": 0, "lo": 0, "hi": 255, "residual_shift": 0, "out_dtype": "uint8"}
    with pytest.raises(VerificationError, match="contract"):
        run_qc("qc.dense", [x], [weight, np.zeros(3, np.int64), np.ones(3, np.float32)], **attrs)
    with pytest.raises(VerificationError, match="3 output channels"):
        run_qc("qc.dense", [x], [weight, np.zeros(1, np.int32), np.ones(3, np.float32)], **attrs)
    with pytest.raises(VerificationError, match="not finite"):
        run_qc(
            "qc.dense", [x], [weight, np.zeros(3, np.int32), np.array([1, np.inf, 1], np.float32)], **attrs
        )
    with pytest.raises(VerificationError, match="lo <= hi"):
        run_qc("qc.dense", [x], [weight, np.zeros(3, np.int32), np.ones(3, np.float32)], **attrs | {"lo": -1})


def test_channels_that_do_not_fit_are_refused(run_qc: Any) -> None:
    x, weight = np.zeros((1, 3, 4, 4), np.uint8), np.zeros((2, 2, 1, 1), np.int8)
    with pytest.raises(VerificationError, match="do not fit"):
        run_qc("qc.conv2d", [x], [weight, np.zeros(2, np.int32), np.ones(2, np.float32)], **attributes())


def test_a_zero_output_is_positive(run_qc: Any) -> None:
    # Products of zeros with negative weights are negative zeros; the integer zero has no sign.
    parameters = [np.full((1, 3), -5, np.int8), np.zeros(1, np.int32), np.ones(1, np.float32)]
    attrs = {"zero_point": 0, "lo": 0, "hi": 255, "residual_shift": 0, "out_dtype": "float32"}
    actual = run_qc("qc.dense", [np.zeros((1, 3), np.uint8)], parameters, **attrs)
    assert not np.signbit(actual).any()
