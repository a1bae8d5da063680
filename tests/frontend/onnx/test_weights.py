"""Quantized constants as the integer kernels take them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qcompiler.frontend.onnx.weights import QuantizedConstant, symmetric


def constant(
    values: list[list[int]], dtype: object, scale: list[float], zero: list[int]
) -> QuantizedConstant:
    axis = None if len(scale) == 1 else 0
    return QuantizedConstant(
        np.asarray(values, dtype), np.asarray(scale, np.float32), np.asarray(zero, dtype), axis
    )


def test_symmetric_int8_stays_as_it_is() -> None:
    found = symmetric(constant([[-127, 0, 127], [1, 2, 3]], np.int8, [0.5, 0.25], [0, 0]))
    assert found is not None
    assert found.values.tolist() == [[-127, 0, 127], [1, 2, 3]]
    assert found.scale.tolist() == [0.5, 0.25]
    assert found.rounded == 0.0


def test_one_scale_becomes_one_a_channel() -> None:
    found = symmetric(constant([[1], [2]], np.int8, [0.5], [0]))
    assert found is not None
    assert found.scale.tolist() == [0.5, 0.5]


def test_scales_of_another_axis_are_refused() -> None:
    values = np.zeros((2, 3), np.int8)
    assert symmetric(QuantizedConstant(values, np.ones(3, np.float32), np.zeros(3, np.int8), 1)) is None


@given(st.lists(st.integers(0, 255), min_size=1, max_size=8), st.integers(0, 255))
def test_unsigned_weights_are_exact_where_they_fit(values: list[int], zero: int) -> None:
    found = symmetric(constant([values], np.uint8, [0.5], [zero]))
    assert found is not None
    wanted = np.asarray([values], np.int64) - zero
    assert np.abs(found.values.astype(np.int64)).max() <= 127
    if np.abs(wanted).max() <= 127:
        assert np.array_equal(found.values, wanted)
        assert found.scale.tolist() == [0.5]
        assert found.rounded == 0.0
    else:
        # Half a step of the new scale, which is at most 255 / 127 of the old one; scales are float32.
        real = found.values * found.scale.astype(np.float64)[:, None]
        assert np.abs(real - 0.5 * wanted).max() <= 0.5 * 0.5 * 255 / 127 + 1e-4
        assert found.rounded <= 0.5 * 255 / 127


@given(st.lists(st.sampled_from([-128, -127, 0, 127]), min_size=1, max_size=6))
def test_minus_128_leaves_the_range_of_weights(values: list[int]) -> None:
    found = symmetric(constant([values], np.int8, [0.5], [0]))
    assert found is not None
    assert found.values.min() >= -127
    real = found.values * found.scale.astype(np.float64)[:, None]
    assert np.abs(real - 0.5 * np.asarray([values])).max() <= 0.5 * 0.51


def test_a_reshape_keeps_the_axis_of_the_scales_or_is_refused() -> None:
    held = QuantizedConstant(np.zeros((4, 6), np.int8), np.ones(4, np.float32), np.zeros(4, np.int8), 0)
    moved = held.reshaped((4, 2, 3))
    assert moved is not None
    assert moved.axis == 0
    inner = held.transposed([1, 0]).reshaped((6, 1, 4))
    assert inner is not None
    assert inner.axis == 2
    assert held.reshaped((2, 12)) is None


def test_the_real_numbers() -> None:
    held = QuantizedConstant(
        np.asarray([[1, 2], [3, 4]], np.uint8),
        np.asarray([0.5, 2.0], np.float32),
        np.asarray([1, 2], np.uint8),
        1,
    )
    assert held.array.tolist() == [[0.0, 0.0], [1.0, 4.0]]
    assert held.scaled(2.0).array.tolist() == [[0.0, 0.0], [2.0, 8.0]]
