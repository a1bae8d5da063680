"""The formulas of folding against Python's exact integers and fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.operators import RESIDUAL_MULTIPLIER_LIMIT
from qcompiler.passes.fold_scales import (
    BIAS_LIMIT,
    INT32_MAX,
    AccumulatorOverflowError,
    fold,
    fold_addition,
)
from qcompiler.passes.quantized import Affine, Weight

SCALES = st.floats(1e-6, 1e3)
AFFINES = st.builds(Affine, SCALES, st.integers(0, 255))
EXAMPLES = settings(deadline=None, derandomize=True)


@st.composite
def layers(draw: st.DrawFn) -> tuple[Weight, np.ndarray]:
    channels, taps = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    fills = draw(st.lists(st.sampled_from([-127, 0, 127, None]), min_size=channels, max_size=channels))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    values = np.stack([rng.integers(-127, 128, taps) if f is None else np.full(taps, f) for f in fills])
    scales = np.array([draw(st.floats(1e-12, 1.0)) for _ in fills])
    bias = np.array([draw(st.floats(-1e4, 1e4)) for _ in fills])
    return Weight(values.astype(np.int8), scales), bias


@EXAMPLES
@given(layers(), AFFINES, SCALES)
def test_bias_multiplier_and_bound(layer: tuple[Weight, np.ndarray], x: Affine, out_scale: float) -> None:
    weight, bias = layer
    folded = fold(weight, bias, x, out_scale)
    for o in range(len(bias)):
        scale = max(weight.scales[o], abs(bias[o]) / BIAS_LIMIT / x.scale)
        if scale == weight.scales[o]:
            np.testing.assert_array_equal(folded.weight[o], weight.values[o])
        # A coarser channel's weights are off by half a step of its scale.
        worst = np.abs(folded.weight[o] * scale - weight.values[o] * weight.scales[o]).max()
        assert worst <= 0.5 * scale * (1 + 1e-9)
        total = sum(int(w) for w in folded.weight[o])
        exact = Fraction(bias[o]) / (Fraction(x.scale) * Fraction(scale)) - x.zero_point * total
        assert abs(int(folded.bias[o]) - exact) <= Fraction(1, 2) + Fraction(1, 10**5)
        assert folded.multiplier[o] == pytest.approx(x.scale * scale / out_scale, rel=1e-6)
        assert folded.multiplier.dtype == np.float32
    for q in (0, 255):
        # The worst inputs, one sign of the weights at a time.
        for sign in (1, -1):
            data = np.where(folded.weight * sign > 0, 255, 0) if q else np.zeros_like(folded.weight)
            acc = (data.astype(object) * folded.weight).sum(axis=1) + folded.bias.astype(object)
            assert max(abs(int(a)) for a in acc) <= folded.accumulator_bound <= INT32_MAX


@EXAMPLES
@given(layers(), AFFINES, AFFINES)
def test_a_residual_joins_at_the_accumulators_scale(
    layer: tuple[Weight, np.ndarray], x: Affine, residual: Affine
) -> None:
    weight, bias = layer
    folded = fold(weight, bias, x, 1.0, residual)
    share = folded.residual
    assert share is not None
    assert (share.multiplier.astype(np.int64) < RESIDUAL_MULTIPLIER_LIMIT).all()
    for o in range(len(bias)):
        unit = float(folded.multiplier[o])  # the output's scale is 1
        for q in (0, 1, residual.zero_point, 255):
            product = q * int(share.multiplier[o]) + int(share.offset[o])
            assert -(2**31) <= product < 2**31
            exact = residual.scale * (q - residual.zero_point) / unit
            # Half a unit of rounding, half a unit of the multiplier, and float32's own error of the unit.
            assert abs((product >> share.shift) - exact) <= 1.0 + abs(exact) * 1e-6


def test_a_channel_of_zeros_keeps_its_bias() -> None:
    weight = Weight(np.zeros((2, 8), np.int8), np.array([1e-30, 0.01]))
    bias = np.array([3.5, -3.5])
    folded = fold(weight, bias, Affine(0.02, 200), 0.1)
    np.testing.assert_allclose(folded.bias * folded.multiplier.astype(np.float64) * 0.1, bias, rtol=1e-6)
    assert np.abs(folded.bias).max() <= BIAS_LIMIT


def test_an_accumulator_beyond_int32_is_refused_with_the_number() -> None:
    k = 2**31 // (255 * 127) + 1
    weight = Weight(np.full((1, k), 127, np.int8), np.array([0.01]))
    with pytest.raises(AccumulatorOverflowError, match=str(255 * 127 * k)):
        fold(weight, np.zeros(1), Affine(0.1, 0), 1.0)
    fold(Weight(weight.values[:, 2:], weight.scales), np.zeros(1), Affine(0.1, 0), 1.0)


def test_the_bias_counts_in_the_bound() -> None:
    k = 2**31 // (255 * 127) - 10
    weight = Weight(np.full((1, k), 127, np.int8), np.array([0.01]))
    assert fold(weight, np.zeros(1), Affine(1.0, 0), 1.0).accumulator_bound == 255 * 127 * k
    with pytest.raises(AccumulatorOverflowError):
        fold(weight, np.array([1e6]), Affine(1.0, 0), 1.0)


@EXAMPLES
@given(AFFINES, AFFINES, AFFINES, st.sampled_from([1, -1]))
def test_addition_fits_int32_and_is_near(a: Affine, b: Affine, out: Affine, sign: int) -> None:
    folded = fold_addition(a, b, out, sign)
    largest = 255 * (a.scale + b.scale) / out.scale
    if folded is None:
        assert largest * 2 > INT32_MAX / 2, "refused, though the scales are close enough"
        return
    assert 0 <= folded.shift <= 20
    for qa in (0, a.zero_point, 255):
        for qb in (0, b.zero_point, 255):
            parts = (qa * folded.a_multiplier, qb * folded.b_multiplier)
            assert all(abs(p) < 2**31 for p in (*parts, sum(parts), sum(parts) + folded.offset))
            real = a.scale * (qa - a.zero_point) + sign * b.scale * (qb - b.zero_point)
            exact = real / out.scale + out.zero_point
            error = 0.5 + 255 * 2 * 0.5 / 2**folded.shift
            assert abs(((sum(parts) + folded.offset) >> folded.shift) - exact) <= error + 1e-6 * abs(exact)


def test_addition_of_scales_too_far_apart_is_refused() -> None:
    assert fold_addition(Affine(1e3, 0), Affine(1e-6, 0), Affine(1e-6, 0)) is None
