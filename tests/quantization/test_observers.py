"""Ranges: exact where they are defined exactly, sane for every input, and of bounded memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from qcompiler.config import CalibrationMethod, CompileConfig
from qcompiler.quantization.observers import (
    SMALLEST_SCALE,
    AutoObserver,
    EntropyObserver,
    MinMaxObserver,
    MovingAverageObserver,
    MSEObserver,
    PercentileObserver,
    activation_observer,
)

HISTOGRAMS = (PercentileObserver, MSEObserver, EntropyObserver, AutoObserver)
ALL = (MinMaxObserver, MovingAverageObserver, *HISTOGRAMS)


def squared_error(observer: object, values: torch.Tensor) -> float:
    scale, zero_point = (t.item() for t in observer.calculate_qparams())
    quantized = ((values / scale).round() + zero_point).clamp(0, 255)
    return float(((quantized - zero_point) * scale - values).square().mean())


@pytest.mark.parametrize("observer", ALL)
@given(arrays("float32", 7, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
@settings(deadline=None, max_examples=50)
def test_scales_are_positive_and_finite_and_zero_is_exact(observer, values) -> None:
    observed = observer()
    observed(torch.from_numpy(values))
    scale, zero_point = observed.calculate_qparams()
    assert scale.dtype == torch.float32
    assert torch.isfinite(scale).all()
    assert (scale >= SMALLEST_SCALE).all()
    assert torch.isfinite(1 / scale).all()
    assert 0 <= zero_point.item() <= 255


@pytest.mark.parametrize("observer", ALL)
@pytest.mark.parametrize(
    ("values", "scale", "zero_point"),
    [
        ([5.0, 6.375], 0.025, 0),
        ([-6.375, -5.0], 0.025, 255),
        ([0.0, 0.0], SMALLEST_SCALE, 0),
        ([], SMALLEST_SCALE, 0),
    ],
)
def test_range_includes_zero(observer, values: list[float], scale: float, zero_point: int) -> None:
    observed = observer()
    observed(torch.tensor(values))
    found, point = observed.calculate_qparams()
    # A histogram knows an end to the width of a bin.
    assert found.item() == pytest.approx(scale, rel=0.01)
    assert point.item() == zero_point


def test_minmax_is_exact_over_batches() -> None:
    observed = MinMaxObserver()
    for batch in ([1.0, -0.5], [2.0, 0.0], [-1.0]):
        observed(torch.tensor(batch))
    scale, zero_point = observed.calculate_qparams()
    assert scale.item() == pytest.approx(3 / 255)
    assert zero_point.item() == 85


def test_moving_average_weighs_the_newest_batch() -> None:
    observed = MovingAverageObserver(averaging_constant=0.25)
    for high in (1.0, 2.0, 3.0):
        observed(torch.tensor([-high, high]))
    low, high = observed.range()
    assert high == pytest.approx(0.75 * (0.75 * 1.0 + 0.25 * 2.0) + 0.25 * 3.0)
    assert low == -high


@pytest.mark.parametrize("observer", HISTOGRAMS[:3])
def test_ranges_of_histograms_do_not_depend_on_batches_or_their_order(observer) -> None:
    values = torch.randn(4096) * torch.logspace(-3, 3, 4096)
    together, apart = observer(), observer()
    together(values)
    for batch in values.flip(0).split(100):
        apart(batch)
    assert together.range() == apart.range()


def test_percentile_leaves_the_same_share_out_at_either_end() -> None:
    observed = PercentileObserver(percentile=90.0)
    observed(torch.linspace(-1, 1, 10001))
    low, high = observed.range()
    assert low == pytest.approx(-0.9, abs=0.001)
    assert high == pytest.approx(0.9, abs=0.001)


def test_percentile_of_all_is_the_extremes() -> None:
    values = torch.randn(1000)
    observed = PercentileObserver(percentile=100.0)
    observed(values)
    assert observed.range() == (float(values.min()), float(values.max()))


def test_percentile_of_rectified_values_starts_at_zero() -> None:
    observed = PercentileObserver(percentile=99.0)
    observed(torch.randn(10000).relu())
    low, high = observed.range()
    assert low == 0.0
    assert 2.0 < high < 3.0


def test_mse_is_as_good_as_trying_every_range() -> None:
    values = torch.cat([torch.randn(20_000), torch.tensor([50.0, 12.0])])
    best, extremes = MSEObserver(), MinMaxObserver()
    best(values)
    extremes(values)
    tried = []
    for low in torch.linspace(-5, -2, 7):
        for high in [*torch.linspace(2, 6, 17), torch.tensor(12.0), torch.tensor(50.0)]:
            clipped = MinMaxObserver()
            clipped(torch.stack([low, high]))
            tried.append(squared_error(clipped, values))
    assert squared_error(best, values) < 1.02 * min(tried)
    assert squared_error(best, values) < squared_error(extremes, values)


@pytest.mark.parametrize("outlier", [1e3, -1e4, 1e6])
@pytest.mark.parametrize("rectified", [False, True])
def test_mse_is_no_worse_than_any_range_beside_an_outlier(outlier: float, rectified: bool) -> None:
    """Where a step is wider than most values, these round to zero, and clipping the outlier gains nothing."""
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    values = torch.cat([values.relu() if rectified else values, torch.tensor([outlier])])
    best = MSEObserver()
    best(values)
    tried = []
    for low in torch.linspace(0, 1, 15) * values.min():
        for high in torch.linspace(0, 1, 15) * values.max():
            clipped = MinMaxObserver()
            clipped(torch.stack([low, high]))
            tried.append(squared_error(clipped, values))
    assert squared_error(best, values) < 1.1 * min(tried)


def test_mse_keeps_the_extremes_of_even_values() -> None:
    observed = MSEObserver()
    observed(torch.linspace(-1, 1, 10000))
    # Clipping less than a step costs less than the finer step saves.
    low, high = observed.range()
    assert -1.0 <= low < -1.0 + 2 / 255
    assert 1.0 - 2 / 255 < high <= 1.0


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_mse_does_not_count_rounding_of_exact_zeros(share: float) -> None:
    values = torch.linspace(0, 1, 10000).clamp(min=0)
    zeros = torch.zeros(int(10000 * share / (1 - share)))
    without, with_zeros = MSEObserver(), MSEObserver()
    without(values)
    with_zeros(torch.cat([values, zeros]))
    assert without.range() == with_zeros.range()


@pytest.mark.parametrize("outlier", [1e4, -1e6, 1e12])
@pytest.mark.parametrize("observer", [PercentileObserver, EntropyObserver])
def test_an_outlier_does_not_hide_the_other_values(observer, outlier: float) -> None:
    """Both clip it: the range is that of a normal distribution, whatever the outlier is."""
    values = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    observed = observer()
    observed(torch.cat([values, torch.tensor([outlier])]))
    low, high = observed.range()
    assert -5.5 < low < -3.0
    assert 3.0 < high < 5.5


def test_percentile_is_exact_to_the_width_of_a_bin_beside_an_outlier() -> None:
    values = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) * 1e-3
    observed = PercentileObserver(percentile=99.0)
    observed(torch.cat([values, torch.tensor([1e6])]))
    assert observed.range()[1] == pytest.approx(float(values.quantile(0.995)), rel=1 / 255)


def test_entropy_keeps_the_extremes_of_even_values() -> None:
    observed = EntropyObserver()
    observed(torch.linspace(-1, 1, 100_000))
    # The grid of candidates has 24 steps; clipping one of them loses less than a percent of the values.
    low, high = observed.range()
    assert low < -0.95
    assert high > 0.95


def test_entropy_clips_a_thin_tail_of_rectified_values() -> None:
    values = torch.cat([torch.randn(100_000).relu(), torch.linspace(20, 100, 20)])
    observed = EntropyObserver()
    observed(values)
    low, high = observed.range()
    assert low == 0.0
    assert 2.5 < high < 20.0


def test_auto_has_the_ranges_of_the_methods_and_gives_the_chosen_one() -> None:
    values = torch.randn(10_000) * 3
    observed = AutoObserver(percentile=99.0, averaging_constant=0.5)
    made = {
        "minmax": MinMaxObserver(),
        "moving-average": MovingAverageObserver(averaging_constant=0.5),
        "percentile": PercentileObserver(percentile=99.0),
        "mse": MSEObserver(),
        "entropy": EntropyObserver(),
    }
    for batch in values.split(1000):
        observed(batch)
        for single in made.values():
            single(batch)
    assert observed.range() == made["minmax"].range()
    for method, single in made.items():
        observed.choose(method)
        assert observed.range() == single.range(), method


def test_configuration_chooses_the_observer() -> None:
    def made(method: CalibrationMethod, **options: float) -> Any:
        return activation_observer(CompileConfig(calibration_method=method, **options))()

    assert type(made("minmax")) is MinMaxObserver
    assert type(made("mse")) is MSEObserver
    assert type(made("entropy")) is EntropyObserver
    assert type(made("auto")) is AutoObserver
    assert made("percentile", percentile=99.0).percentile == 99.0
    assert made("moving-average", averaging_constant=0.5).averaging_constant == 0.5


@pytest.mark.parametrize("observer", ALL)
@pytest.mark.parametrize("values", [[-3.0, 1.0], [0.0, 3.0], [-3.0, 3.0], [0.0]])
def test_symmetric_ranges_have_their_zero_point_in_the_middle(observer, values) -> None:
    observed = observer(qscheme=torch.per_tensor_symmetric)
    observed(torch.tensor(values))
    scale, zero_point = observed.calculate_qparams()
    assert zero_point.item() == 128
    if observer is MinMaxObserver:
        assert scale.item() == pytest.approx(max(3.0 / 127 if any(values) else 0.0, SMALLEST_SCALE), rel=1e-6)
    # What the range holds is no more than half a step from its rounded value.
    steps = (torch.tensor(values) / scale).round() + 128
    low, high = observed.range()
    assert steps[torch.tensor(values) <= high].max() <= 255
    assert steps[torch.tensor(values) >= low].min() >= 0
