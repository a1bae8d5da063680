"""Counts are exact, in bins that are narrow beside the values in them, whatever else was counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompiler.quantization.histogram import SMALLEST, Histogram

ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)


def counted(*batches: torch.Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch, float(batch.min()), float(batch.max()))
    return histogram


@given(arrays("float32", st.integers(1, 30), elements=ANY))
@settings(deadline=None, max_examples=200)
def test_every_value_is_in_its_bin(values) -> None:
    bins = counted(torch.from_numpy(values)).bins()
    lows, highs, counts = (t.numpy() for t in (bins.lows, bins.highs, bins.counts))
    assert counts.sum() == len(values)
    assert (np.diff(lows) > 0).all()
    assert (highs[:-1] <= lows[1:]).all()
    exact = np.where(np.abs(values) < SMALLEST, 0.0, values).astype(np.float64)
    for low, high, count in zip(lows, highs, counts, strict=True):
        # A bin of negative values has its upper end outside, one of positive values its upper end too.
        inside = (exact > low) & (exact <= high) if high < 0 else (exact >= low) & (exact < high)
        assert count == (inside if low != high else exact == 0).sum()


@given(arrays("float32", st.integers(1, 30), elements=ANY))
@settings(deadline=None, max_examples=50)
def test_bins_are_narrow_beside_their_values(values) -> None:
    bins = counted(torch.from_numpy(values)).bins().without_zeros()
    assert (bins.widths <= torch.minimum(bins.lows.abs(), bins.highs.abs()) / 256).all()


def test_counts_do_not_depend_on_batches_or_their_order() -> None:
    values = torch.randn(4096) * torch.logspace(-9, 9, 4096)
    together, apart = counted(values).bins(), counted(*values.flip(0).split(100)).bins()
    assert torch.equal(together.counts, apart.counts)
    assert torch.equal(together.lows, apart.lows)


@pytest.mark.parametrize("value", [1.0, -1.0, 3.4e38])
def test_a_bin_that_is_counted_again_and_again_stays_exact(value: float) -> None:
    histogram = counted(*[torch.full((1000,), value)] * 5, torch.zeros(7))
    assert sorted(histogram.bins().counts.tolist()) == [7, 5000]
    assert histogram.total == 5007
