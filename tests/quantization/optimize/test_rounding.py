"""Adaptive rounding: neighbours in the grid only, never worse than the nearest, next to the best of all choices."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prepared import BATCHES, calibrated
from small_networks import Calls
from torch import nn

from qcompiler.quantization.batch_norms import attribute
from qcompiler.quantization.optimize.rounding import best_rounding, round_adaptively
from qcompiler.quantization.optimize.sweep import layers_of
from qcompiler.quantization.simulation import Simulation


def problem(groups: int, rows: int, inputs: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Weights, steps, correlated inputs' moments, and what the outputs lack."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(groups, inputs, inputs, generator=generator, dtype=torch.float64)
    x = mixed @ torch.randn(groups, inputs, 200, generator=generator, dtype=torch.float64) + 1.0
    weight = torch.randn(groups, rows, inputs, generator=generator, dtype=torch.float64)
    steps = weight.abs().amax(dim=2, keepdim=True) / 7
    lacks = 0.1 * torch.randn(groups, rows, inputs, generator=generator, dtype=torch.float64)
    return weight, steps, x @ x.transpose(1, 2) / 200, lacks


def error(
    weight: torch.Tensor, rounded: torch.Tensor, moments: torch.Tensor, lacks: torch.Tensor
) -> torch.Tensor:
    """Of each row, without the damping."""
    d = rounded - weight
    return ((d @ moments) * d - 2 * lacks * d).sum(dim=2)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 9), st.integers(0, 10_000))
@settings(deadline=None, max_examples=40)
def test_multiples_of_the_step_beside_the_weight_within_the_grid(groups, rows, inputs, seed) -> None:
    weight, steps, moments, lacks = problem(groups, rows, inputs, seed)
    quantized = best_rounding(weight, steps, moments, lacks, -7, 7) / steps
    assert torch.allclose(quantized, quantized.round(), atol=1e-9)
    assert quantized.abs().max() <= 7 + 1e-9
    assert ((quantized - weight / steps).abs() < 1 + 1e-9).all()


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 200), st.integers(0, 10_000))
@settings(deadline=None, max_examples=25)
def test_never_worse_than_the_nearest(groups, rows, inputs, seed) -> None:
    weight, steps, moments, lacks = problem(groups, rows, inputs, seed)
    damped = moments + 0.01 * moments.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None] * torch.eye(inputs)
    found = error(weight, best_rounding(weight, steps, moments, lacks, -7, 7), damped, lacks)
    nearest = error(weight, (weight / steps).round() * steps, damped, lacks)
    # Flips are compared in single precision.
    assert (found <= nearest + 1e-4 * nearest.abs() + 1e-6).all()


def test_close_to_the_best_of_all_choices() -> None:
    total_found = total_best = total_nearest = 0.0
    for seed in range(10):
        weight, steps, moments, lacks = problem(1, 1, 8, seed)
        exact = weight / steps
        choices = [
            error(weight, torch.where(torch.tensor(up), exact.ceil(), exact.floor()) * steps, moments, lacks)
            for up in itertools.product([False, True], repeat=8)
        ]
        total_best += float(min(choices))
        total_nearest += float(error(weight, exact.round() * steps, moments, lacks))
        total_found += float(
            error(weight, best_rounding(weight, steps, moments, lacks, -7, 7), moments, lacks)
        )
    assert total_found - total_best < 0.35 * (total_nearest - total_best)


@pytest.mark.parametrize("options", [{}, {"groups": 3}, {"stride": 2}, {"dilation": 2}, {"padding": 0}])
def test_layers_come_closer_to_the_float_model(options: dict[str, int]) -> None:
    """Over the layer alone: convolutions of every kind, whose windows are cut out here, and a linear layer."""
    module = Calls(
        lambda m, x: m.fc(m.c(x).mean(3)),
        c=nn.Conv2d(3, 6, 3, **{"padding": 1, **options}),
        fc=nn.Linear(16 if options in ({}, {"groups": 3}) else {"stride": 8, "dilation": 14, "padding": 14}[next(iter(options))], 4),
    ).eval()  # fmt: skip
    simulation = calibrated(module).simulation
    convolution, linear = layers_of(simulation)
    active = {convolution.quantizer, linear.quantizer, *convolution.node.all_input_nodes}

    @torch.no_grad()
    def noise(simulation: Simulation) -> float:
        pairs = [
            (expected[b], simulation.run(batch, active)[convolution.node]) for b, batch in enumerate(BATCHES)
        ]
        return sum(float((f - e).square().sum()) for e, f in pairs)

    with torch.no_grad():
        expected = [simulation.run(batch, ())[convolution.node] for batch in BATCHES]
        before = noise(simulation)
        weight = attribute(simulation.prepared, str(convolution.weight.target))
        original, scale = weight.clone(), simulation.observers[convolution.quantizer].calculate_qparams()[0]
        assert round_adaptively(simulation, BATCHES).changed == 2
    assert noise(Simulation(simulation.prepared)) < 0.97 * before
    assert not torch.equal(weight, original)
    # What the converted model rounds is at the middle of its interval already.
    quantized = weight / scale.reshape(-1, 1, 1, 1)
    assert torch.allclose(quantized, quantized.round(), atol=1e-3)


def test_a_weight_that_two_layers_share_is_left_alone() -> None:
    module = Calls(lambda m, x: m.c(m.c(x)), c=nn.Conv2d(3, 3, 3)).eval()
    simulation = calibrated(module).simulation
    with torch.no_grad():
        change = round_adaptively(simulation, BATCHES)
    assert change.changed == 0
    assert set(change.refused) == {"the weight is used more than once"}
