"""The integer operators without weights, against loops over Python's integers."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qcompiler.errors import VerificationError

QUICK = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ALL = np.arange(256, dtype=np.uint8)
PAIRS = (ALL[:, None], ALL[None, :])
SAMPLE = (0, 1, 2, 7, 127, 128, 200, 254, 255)


def clip(value: int, lo: int, hi: int) -> int:
    return min(max(value, lo), hi)


def rounded(value: int, factor: float) -> int:
    """rne(f32(value) * f32(factor))"""
    return round(float(np.float32(value) * np.float32(factor)))


@pytest.mark.parametrize("zero_point", [0, 128, 255])
@pytest.mark.parametrize("scale", [0.1, 1 / 3, 2.0**-20, 1e30])
def test_dequantize(run_qc: Any, zero_point: int, scale: float) -> None:
    actual = run_qc("qc.dequantize", [ALL], scale=scale, zero_point=zero_point)
    expected = [np.float32(q - zero_point) * np.float32(scale) for q in range(256)]
    np.testing.assert_array_equal(actual, np.array(expected), strict=True)


@pytest.mark.parametrize(("lo", "hi"), [(0, 255), (5, 100), (7, 7)])
@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_quantize(run_qc: Any, zero_point: int, lo: int, hi: int) -> None:
    special = [0.0, -0.0, 1e-45, 3.4e38, -3.4e38, 2.0**24 + 2, 0.1]
    halves = [v + 0.5 for v in range(-260, 260)]
    x = np.array([*special, *halves, *np.random.default_rng(0).normal(0, 100, 200)], np.float32)
    for inverse in (1.0, 1 / 0.3, 1e-3):
        actual = run_qc("qc.quantize", [x], inv_scale=inverse, zero_point=zero_point, lo=lo, hi=hi)
        with np.errstate(over="ignore"):
            products = [float(v * np.float32(inverse)) for v in x]
        expected = [
            clip(round(p) + zero_point, lo, hi) if math.isfinite(p) else (hi if p > 0 else lo)
            for p in products
        ]
        np.testing.assert_array_equal(actual, np.array(expected, np.uint8), strict=True)


def test_quantize_saturates_infinities_and_refuses_nan(run_qc: Any) -> None:
    attrs = {"inv_scale": 1.0, "zero_point": 3, "lo": 1, "hi": 250}
    x = np.array([np.inf, -np.inf], np.float32)
    assert run_qc("qc.quantize", [x], **attrs).tolist() == [250, 1]
    with pytest.raises(VerificationError, match="NaN"):
        run_qc("qc.quantize", [np.array([np.nan], np.float32)], **attrs)


def test_quantize_multiplies_in_float32(run_qc: Any) -> None:
    # In float32 the product is 1.5, a tie that rounds to 2; in float64 it lies below and rounds to 1.
    inverse = 0.49999999
    actual = run_qc(
        "qc.quantize", [np.array([3.0], np.float32)], inv_scale=inverse, zero_point=0, lo=0, hi=255
    )
    assert round(3.0 * inverse) == 1
    assert actual.tolist() == [2]


@QUICK
@given(
    st.integers(-(2**22), 2**22),
    st.integers(-(2**22), 2**22),
    st.integers(-(2**24), 2**24),
    st.integers(0, 22),
)
def test_add(run_qc: Any, a_multiplier: int, b_multiplier: int, offset: int, shift: int) -> None:
    attrs = {"a_multiplier": a_multiplier, "b_multiplier": b_multiplier, "offset": offset, "shift": shift}
    extremes = [255 * (i * a_multiplier + j * b_multiplier) + offset for i, j in product((0, 1), repeat=2)]
    if max(extremes) >= 2**31 or min(extremes) < -(2**31):
        with pytest.raises(VerificationError, match="overflows int32"):
            run_qc("qc.add", PAIRS, **attrs, lo=0, hi=255)
        return
    actual = run_qc("qc.add", PAIRS, **attrs, lo=3, hi=250)
    assert actual.shape == (256, 256)
    for a, b in product(SAMPLE, repeat=2):
        assert actual[a, b] == clip((a * a_multiplier + b * b_multiplier + offset) >> shift, 3, 250)


@pytest.mark.parametrize(("a_zero", "b_zero"), [(0, 0), (255, 0), (255, 255), (128, 3)])
@pytest.mark.parametrize("multiplier", [1.0, 0.5, 1 / 255, 1e-4])
def test_mul(run_qc: Any, a_zero: int, b_zero: int, multiplier: float) -> None:
    attrs = {"a_zero_point": a_zero, "b_zero_point": b_zero, "multiplier": multiplier, "zero_point": 100}
    actual = run_qc("qc.mul", PAIRS, **attrs, lo=2, hi=254)
    for a, b in product(SAMPLE, repeat=2):
        assert actual[a, b] == clip(rounded((a - a_zero) * (b - b_zero), multiplier) + 100, 2, 254)


def test_avg_pool2d_refuses_a_window_that_can_overflow(run_qc: Any) -> None:
    attrs = {"pool_size": [3000, 3000], "strides": [1, 1], "padding": [0, 0, 0, 0], "layout": "NCHW"}
    attrs |= {"input_zero_point": 0, "zero_point": 0, "lo": 0, "hi": 255}
    with pytest.raises(VerificationError, match="3000 x 3000 can overflow int32"):
        run_qc(
            "qc.avg_pool2d", [np.zeros((1, 1, 3000, 3000), np.uint8)], [np.ones((1, 1), np.float32)], **attrs
        )


def test_lut(run_qc: Any) -> None:
    table = np.random.default_rng(0).integers(0, 256, 256).astype(np.uint8)
    x = ALL.reshape(16, 16)
    assert run_qc("qc.lut", [x], [table]).tolist() == [[int(table[v]) for v in row] for row in x]
    with pytest.raises(VerificationError, match="256 entries"):
        run_qc("qc.lut", [x], [table[:128]])


@st.composite
def windows(draw: st.DrawFn) -> dict[str, Any]:
    integer = lambda lo, hi: draw(st.integers(lo, hi))  # noqa: E731
    pool, strides = [integer(1, 4), integer(1, 4)], [integer(1, 3), integer(1, 3)]
    padding, size = [integer(0, 2) for _ in range(4)], [integer(4, 9), integer(4, 9)]
    out = [(size[i] + padding[i] + padding[i + 2] - pool[i]) // strides[i] + 1 for i in (0, 1)]
    # Ceil mode: one window more, as long as it starts inside of x or its left padding.
    out = [o + draw(st.booleans()) * (o * strides[i] < size[i] + padding[i]) for i, o in enumerate(out)]
    values = draw(st.sampled_from([[0, 255], [255], range(256)]))
    rng = np.random.default_rng(integer(0, 2**32 - 1))
    x = rng.choice(list(values), (2, 3, *size)).astype(np.uint8)
    return {"pool": pool, "strides": strides, "padding": padding, "out": out, "x": x, "rng": rng}


def valid_window(case: dict[str, Any], plane: np.ndarray, oh: int, ow: int, dilation: int = 1) -> list[int]:
    """Elements of x under one window."""
    rows, columns = (
        [
            o * case["strides"][i] - case["padding"][i] + k * dilation
            for k in range(case["pool"][i])
            if 0 <= o * case["strides"][i] - case["padding"][i] + k * dilation < plane.shape[i]
        ]
        for i, o in enumerate((oh, ow))
    )
    return [int(plane[r, c]) for r in rows for c in columns]


@QUICK
@given(windows(), st.integers(1, 2))
def test_max_pool2d_in_both_layouts(run_qc: Any, case: dict[str, Any], dilation: int) -> None:
    expected = np.zeros((2, 3, *case["out"]), np.uint8)
    for n, c, oh, ow in np.ndindex(*expected.shape):
        expected[n, c, oh, ow] = max(valid_window(case, case["x"][n, c], oh, ow, dilation), default=0)
    attrs = {"pool_size": case["pool"], "strides": case["strides"], "padding": case["padding"]}
    attrs |= {"dilation": [dilation, dilation], "out_size": case["out"]}
    actual = run_qc("qc.max_pool2d", [case["x"]], **attrs, layout="NCHW")
    np.testing.assert_array_equal(actual, expected, strict=True)
    actual = run_qc("qc.max_pool2d", [case["x"].transpose(0, 2, 3, 1).copy()], **attrs, layout="NHWC")
    np.testing.assert_array_equal(actual, expected.transpose(0, 2, 3, 1), strict=True)


@QUICK
@given(windows(), st.sampled_from([0, 128, 255]))
def test_avg_pool2d_in_both_layouts(run_qc: Any, case: dict[str, Any], zero: int) -> None:
    multiplier = case["rng"].choice([0.5, 0.25, 1 / 9, 1 / 3], case["out"]).astype(np.float32)
    expected = np.zeros((2, 3, *case["out"]), np.uint8)
    for n, c, oh, ow in np.ndindex(*expected.shape):
        acc = sum(v - zero for v in valid_window(case, case["x"][n, c], oh, ow))
        expected[n, c, oh, ow] = clip(rounded(acc, float(multiplier[oh, ow])) + 60, 1, 250)
    attrs = {
        "pool_size": case["pool"],
        "strides": case["strides"],
        "padding": case["padding"],
        "zero_point": 60,
    }
    attrs |= {"input_zero_point": zero, "lo": 1, "hi": 250}
    actual = run_qc("qc.avg_pool2d", [case["x"]], [multiplier], **attrs, layout="NCHW")
    np.testing.assert_array_equal(actual, expected, strict=True)
    actual = run_qc(
        "qc.avg_pool2d", [case["x"].transpose(0, 2, 3, 1).copy()], [multiplier], **attrs, layout="NHWC"
    )
    np.testing.assert_array_equal(actual, expected.transpose(0, 2, 3, 1), strict=True)
