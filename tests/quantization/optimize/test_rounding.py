"""Adaptive rounding: neighbours in the grid only, never worse than the nearest, next to the best of all choices."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import BATCHES, simulated
from small_networks import Calls
from torch import nn

from qcompiler.quantization.batch_norms import attribute
from qcompiler.quantization.optimize.effects import Change
from qcompiler.quantization.optimize.rounding import best_rounding, round_adaptively
from qcompiler.quantization.optimize.sweep import layers_of
from qcompiler.quantization.simulation import Simulation
from qcompiler.targets.base import QuantizationRules

IMAGES = [
    (F.interpolate(x[:, :, ::4, ::4], scale_factor=4.0, mode="bilinear") + 0.1 * x + 0.5,) for (x,) in BATCHES
]
"""Neighbouring pixels are alike, as in photographs: errors of weights that read them can make up for one another."""


def problem(groups: int, rows: int, inputs: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Weights, steps, and the moments of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(groups, inputs, inputs, generator=generator, dtype=torch.float64)
    x = mixed @ torch.randn(groups, inputs, 200, generator=generator, dtype=torch.float64) + 1.0
    weight = torch.randn(groups, rows, inputs, generator=generator, dtype=torch.float64)
    steps = weight.abs().amax(dim=2, keepdim=True) / 7
    return weight, steps, x @ x.transpose(1, 2) / 200


def error(weight: torch.Tensor, rounded: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Of each row, without the damping."""
    d = rounded - weight
    return ((d @ moments) * d).sum(dim=2)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_multiples_of_the_step_beside_the_weight_within_the_grid(groups, rows, inputs, seed) -> None:
    weight, steps, moments = problem(groups, rows, inputs, seed)
    quantized = best_rounding(weight, steps, moments, -7, 7) / steps
    assert torch.allclose(quantized, quantized.round(), atol=1e-9)
    assert quantized.abs().max() <= 7 + 1e-9
    assert ((quantized - weight / steps).abs() < 1 + 1e-9).all()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 140), st.integers(0, 10_000))
@settings(deadline=None, max_examples=10)
def test_never_worse_than_the_nearest(groups, rows, inputs, seed) -> None:
    weight, steps, moments = problem(groups, rows, inputs, seed)
    damped = moments + 0.01 * moments.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(inputs)
    found = error(weight, best_rounding(weight, steps, moments, -7, 7), damped)
    nearest = error(weight, (weight / steps).round() * steps, damped)
    # Flips are compared in single precision.
    assert (found <= nearest + 1e-4 * nearest.abs() + 1e-6).all()


def test_close_to_the_best_of_all_choices() -> None:
    total_found = total_best = total_nearest = 0.0
    for seed in range(10):
        weight, steps, moments = problem(1, 1, 8, seed)
        exact = weight / steps
        choices = [
            error(weight, torch.where(torch.tensor(up), exact.ceil(), exact.floor()) * steps, moments)
            for up in itertools.product([False, True], repeat=8)
        ]
        total_best += float(min(choices))
        total_nearest += float(error(weight, exact.round() * steps, moments))
        total_found += float(error(weight, best_rounding(weight, steps, moments, -7, 7), moments))
    assert total_found - total_best < 0.35 * (total_nearest - total_best)


@pytest.mark.parametrize("options", [{}, {"groups": 3}, {"stride": 2}, {"dilation": 2}, {"padding": 0}])
def test_a_convolution_comes_closer_to_the_float_one(options: dict[str, int]) -> None:
    """Its windows are cut out here, so each kind of convolution has to be; weights of four bits."""
    convolution = nn.Conv2d(3, 6, 3, **{"padding": 1, **options})
    expect_closer(Calls(lambda m, x: m.c(x), c=convolution))


def test_a_linear_layer_over_several_dimensions_comes_closer() -> None:
    expect_closer(Calls(lambda m, x: m.fc(x), fc=nn.Linear(16, 8)))


@torch.no_grad()
def expect_closer(module: nn.Module) -> None:
    rules = QuantizationRules(weight_range=(-7, 7))
    simulation = simulated(module.eval(), batches=IMAGES, rules=rules)
    (layer,) = layers_of(simulation)
    expected = [simulation.run(batch, ())[layer.node] for batch in IMAGES]

    def noise() -> float:
        fresh = Simulation(simulation.prepared)
        found = [fresh.run(batch, fresh.quantizers)[layer.node] for batch in IMAGES]
        return sum(float((f - e).square().sum()) for f, e in zip(found, expected, strict=True))

    before = noise()
    weight = attribute(simulation.prepared, str(layer.weight.target))
    original, scale = weight.clone(), simulation.observers[layer.quantizer].calculate_qparams()[0]
    assert round_adaptively(simulation, IMAGES) == Change(1)
    assert noise() < 0.7 * before
    assert not torch.equal(weight, original)
    # What the converted model rounds is at the middle of its interval already.
    quantized = weight / scale.reshape(-1, *[1] * (weight.dim() - 1))
    assert torch.allclose(quantized, quantized.round(), atol=1e-3)


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    module = Calls(lambda m, x: m.c(m.c(x)), c=nn.Conv2d(3, 3, 3)).eval()
    simulation = simulated(module)
    with torch.no_grad():
        change = round_adaptively(simulation, BATCHES)
    assert change.changed == 0
    assert set(change.refused) == {"the weight is used more than once"}
