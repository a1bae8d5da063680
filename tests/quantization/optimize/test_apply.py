"""What is tried is measured, kept if it helps, undone without a trace if it does not."""

from __future__ import annotations

import math

import pytest
import torch
from prepared import BATCHES, calibrated, damaged, plain
from small_networks import Calls
from torch import nn

from qcompiler.config import EFFORTS, CompileConfig, Methods
from qcompiler.errors import ConfigError
from qcompiler.quantization.batch_norms import attribute
from qcompiler.quantization.optimize import apply
from qcompiler.quantization.optimize.effects import Change, divide, sqnr
from qcompiler.quantization.optimize.sweep import add_to_bias, layers_of
from qcompiler.quantization.quantizer import Calibrated
from qcompiler.quantization.simulation import Simulation


@torch.no_grad()
def outputs(result: Calibrated) -> torch.Tensor:
    simulation = Simulation(result.model)
    return torch.cat([simulation.outputs(simulation.run(b, simulation.quantizers))[0] for b in BATCHES])


def noise_db(result: Calibrated) -> float:
    simulation = Simulation(result.model)
    with torch.no_grad():
        expected = [simulation.outputs(simulation.run(b, ())) for b in BATCHES]
    found = [(row[None],) for row in outputs(result)]
    return sqnr(zip(expected, found, strict=True))


def test_without_methods_nothing_is_tried() -> None:
    assert calibrated(plain()).effects == ()


def test_max_effort_repairs_an_outlier_channel() -> None:
    fast = noise_db(calibrated(damaged()))
    best = calibrated(damaged(), CompileConfig(effort="max"))
    effects = {e.name: e for e in best.effects}
    assert list(effects) == [
        "calibration_method auto", "equalize", "smooth", "adaptive_rounding", "bias_correction empirical",
    ]  # fmt: skip
    assert effects["equalize"].kept
    assert effects["equalize"].after_db > effects["equalize"].before_db + 6
    assert not effects["smooth"].kept
    assert noise_db(best) > fast + 10
    assert noise_db(best) > noise_db(calibrated(plain())) - 3


def in_buffers() -> nn.Module:
    """A convolution whose weight and bias are no parameters, as of models that come from elsewhere."""
    module = Calls(lambda m, x: nn.functional.conv2d(x, m.w, m.b).mean((2, 3)))
    module.register_buffer("w", torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    module.register_buffer("b", torch.ones(4))
    return module.eval()


@pytest.mark.parametrize("make", [plain, in_buffers])
def test_what_makes_outputs_worse_is_undone(make, monkeypatch) -> None:
    def spoil(simulation, batches):
        for layer in layers_of(simulation):
            attribute(simulation.prepared, str(layer.weight.target)).mul_(1.5)
            add_to_bias(simulation.prepared, layer, torch.ones(1))
        return Change(1)

    monkeypatch.setattr(apply, "correct_biases", spoil)
    expected = calibrated(make())
    found = calibrated(make(), CompileConfig(bias_correction="empirical"))
    (effect,) = found.effects
    assert not effect.kept
    assert effect.after_db < effect.before_db
    assert torch.equal(outputs(found), outputs(expected))


@pytest.mark.parametrize("kept", [True, False])
def test_effects_are_chained(kept: bool, monkeypatch) -> None:
    if not kept:
        monkeypatch.setattr(apply, "round_adaptively", lambda simulation, batches: Change(0))
    result = calibrated(plain(), CompileConfig(adaptive_rounding=True, bias_correction="fast"))
    first, second = result.effects
    assert first.kept == kept
    assert second.before_db == (first.after_db if kept else first.before_db)


def test_the_user_s_own_weights_stay_as_they_are() -> None:
    module = damaged()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    calibrated(module, CompileConfig(effort="max"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_options_override_the_effort() -> None:
    assert CompileConfig().methods == Methods() == EFFORTS["fast"]
    config = CompileConfig(effort="max", equalize=False, bias_correction="off", calibration_method="mse")
    assert config.methods == Methods("mse", smooth=True, adaptive_rounding=True)
    for options in ({"effort": "huge"}, {"bias_correction": "some"}, {"calibration_method": "best"}):
        with pytest.raises(ConfigError, match="unknown"):
            CompileConfig(**options)


def test_samples_are_divided() -> None:
    fitted, held_out = divide(BATCHES)
    assert len(fitted) == 9
    assert len(held_out) == 3
    assert not {id(b) for b in fitted} & {id(b) for b in held_out}
    assert divide(BATCHES[:3]) == (BATCHES[:3], BATCHES[:3])


def test_ratio_of_several_outputs_counts_each_the_same() -> None:
    right, wrong = torch.ones(4), torch.ones(4) * 1.1
    pairs = [((1000 * right, right), (1000 * right, wrong))]
    assert sqnr(pairs) == pytest.approx(-10 * math.log10(0.01 / 2), abs=1e-4)
    assert sqnr([((right,), (right,))]) == math.inf
