"""Bias correction: the mean error vanishes on the data; from batch norms alone it comes close."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytest
import torch
from prepared import BATCHES, plain, simulated
from small_networks import Calls, settle
from torch import nn
from torch.fx import Node

from qcompiler.quantization.batch_norms import Normal, attribute
from qcompiler.quantization.optimize.bias import _clamped, correct_biases, correct_biases_fast
from qcompiler.quantization.optimize.effects import Change
from qcompiler.quantization.optimize.sweep import layers_of
from qcompiler.quantization.simulation import Simulation
from qcompiler.targets.base import QuantizationRules

COARSE = QuantizationRules(weight_range=(-7, 7))
"""Weights of four bits, whose rounding shifts means well beyond what activations do."""


@torch.no_grad()
def outputs(simulation: Simulation, active: Collection[Node]) -> torch.Tensor:
    return torch.cat([simulation.outputs(simulation.run(b, active))[0] for b in BATCHES])


def test_empirical_correction_leaves_no_mean_error() -> None:
    simulation = simulated(plain(), rules=COARSE)
    expected = outputs(simulation, ())
    before = (outputs(simulation, simulation.quantizers) - expected).mean(dim=0)
    with torch.no_grad():
        assert correct_biases(simulation, BATCHES).changed == 4
    corrected = Simulation(simulation.prepared)
    after = (outputs(corrected, corrected.quantizers) - expected).mean(dim=0)
    # The last layer's correction is exact but for the rounding of float32 sums.
    assert after.abs().max() < 1e-5 * expected.abs().max()
    assert before.abs().max() > 100 * after.abs().max()


def test_a_layer_without_bias_gets_one() -> None:
    module = Calls(
        lambda m, x: m.fc(m.c(x).relu().mean((2, 3))),
        c=nn.Conv2d(3, 8, 3, bias=False),
        fc=nn.Linear(8, 4, bias=False),
    ).eval()
    simulation = simulated(module, rules=COARSE)
    expected = outputs(simulation, ())
    with torch.no_grad():
        correct_biases(simulation, BATCHES)
    after = Simulation(simulation.prepared)
    assert all(layer.bias is not None for layer in layers_of(after))
    error = (outputs(after, after.quantizers) - expected).mean(dim=0)
    assert error.abs().max() < 1e-5 * expected.abs().max()


def test_fast_correction_takes_most_of_the_mean_error_of_weights_back() -> None:
    module = plain()
    with torch.no_grad():
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            # The mean of all that it sees, and of nothing else.
            norm.momentum = None
            norm.reset_running_stats()
            norm.train()
        module(torch.cat([x for (x,) in BATCHES]))
    simulation = simulated(module.eval(), rules=COARSE)
    layer = layers_of(simulation)[1]

    @torch.no_grad()
    def mean_error() -> torch.Tensor:
        """Of the second convolution's channels, when its weights alone are rounded."""
        fresh = Simulation(simulation.prepared)
        pairs = [(fresh.run(b, ()), fresh.run(b, {layer.quantizer})) for b in BATCHES]
        # The first run has the corrected bias, too.
        return torch.stack([(q[layer.node] - f[layer.node]).mean(dim=(0, 2, 3)) for f, q in pairs]).mean(
            dim=0
        )

    before = mean_error()
    bias = attribute(simulation.prepared, str(layer.bias.target)).clone()
    with torch.no_grad():
        change = correct_biases_fast(simulation, BATCHES)
    shift = attribute(simulation.prepared, str(layer.bias.target)) - bias
    assert change == Change(3, ("no batch norm tells the mean of what the model's input gives",))
    assert (before + shift).square().mean() < 0.1 * before.square().mean()


@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, 0.5)])
def test_moments_of_a_clamped_normal_distribution(low: float, high: float) -> None:
    normal = Normal(torch.tensor([-2.0, 0.0, 1.0, 7.0]).double(), torch.tensor([1.0, 0.5, 3.0, 2.0]).double())
    found = _clamped(normal, low, high)
    draws = normal.mean + normal.deviation * torch.randn(400_000, 4, dtype=torch.float64)
    draws = draws.clamp(low, high)
    # Four standard errors of the mean of the draws.
    assert torch.allclose(found.mean, draws.mean(dim=0), atol=4 * 3.0 / 400_000**0.5)
    assert torch.allclose(found.deviation, draws.std(dim=0), rtol=0.02, atol=1e-3)


def test_a_constant_channel_stays_constant() -> None:
    found = _clamped(Normal(torch.tensor([2.0]).double(), torch.zeros(1).double()), 0.0, 6.0)
    assert float(found.mean) == pytest.approx(2.0)
    assert float(found.deviation) == pytest.approx(0.0, abs=1e-9)


def test_layers_whose_input_has_no_known_mean_are_named() -> None:
    module = settle(
        Calls(
            lambda m, x: m.c3(m.c2(m.b1(m.c1(x)).relu()).sigmoid()),
            c1=nn.Conv2d(3, 8, 3), b1=nn.BatchNorm2d(8), c2=nn.Conv2d(8, 8, 3), c3=nn.Conv2d(8, 4, 3),
        )
    )  # fmt: skip
    simulation = simulated(module)
    with torch.no_grad():
        change = correct_biases_fast(simulation, BATCHES)
    assert change.changed == 1
    assert change.refused == (
        "no batch norm tells the mean of what the model's input gives",
        "no batch norm tells the mean of what sigmoid gives",
    )
