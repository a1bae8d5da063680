"""The analysis finds a layer that was damaged, names the cause, and its numbers are what whole runs give."""

from __future__ import annotations

import pytest
import torch
from prepared import BATCHES, calibrated, damaged, plain
from small_networks import Calls
from torch import nn

from qcompiler.config import CompileConfig
from qcompiler.quantization.analyze import LayerErrors, analyze_layers
from qcompiler.quantization.optimize.effects import sqnr
from qcompiler.quantization.simulation import Simulation


def analyzed(module: nn.Module, config: CompileConfig | None = None) -> LayerErrors:
    return analyze_layers(calibrated(module, config), BATCHES)


def worst(errors: LayerErrors) -> str:
    return min(errors.layers, key=lambda layer: layer.only_db).name


def test_an_outlier_channel_is_found_and_rounding_named() -> None:
    """Its range is kept whole, so that the other channels have a step or two."""
    errors = analyzed(damaged())
    (layer,) = (e for e in errors.layers if e.name == "c2")
    assert worst(errors) == "c2"
    assert layer.cause == "activation rounding"
    assert layer.outlier_channel == 5
    assert layer.outlier_ratio > 100
    # It alone is most of the model's error. What is left without it is c3's: its weights for the channel round to zero.
    assert layer.only_db == pytest.approx(errors.model_db, abs=1.5)
    assert layer.without_db > errors.model_db + 3
    assert all(e.only_db > layer.only_db + 10 for e in errors.layers if e.name not in ("c2", "c3"))


def test_an_outlier_channel_is_found_and_clipping_named() -> None:
    """The channel carries what the output needs, and a percentile of all values cuts it off."""
    module = plain()
    with torch.no_grad():
        module.b2.weight[5] *= 30.0
        module.b2.bias[5] *= 30.0
    errors = analyzed(module, CompileConfig(calibration_method="percentile", percentile=90.0))
    (layer,) = (e for e in errors.layers if e.name == "c2")
    assert worst(errors) == "c2"
    assert layer.cause == "clipping"
    assert layer.shares["clipping"] > 0.9
    assert layer.outlier_channel == 5


def test_max_effort_repairs_the_damaged_layer() -> None:
    before, after = analyzed(damaged()), analyzed(damaged(), CompileConfig(effort="max"))
    assert after.model_db > before.model_db + 10
    (layer,) = (e for e in after.layers if e.name == "c2")
    assert layer.outlier_ratio < 10
    assert layer.only_db > before.model_db + 10


def test_weights_of_few_bits_are_named() -> None:
    module = plain()
    with torch.no_grad():
        module.c3.weight[:, 0, 0, 0] = 60.0 * module.c3.weight.abs().max()
        module.c3.weight[:, 0, 0, 0] *= torch.tensor([1.0, -1.0]).repeat(4)
    errors = analyzed(module)
    (layer,) = (e for e in errors.layers if e.name == "c3")
    assert layer.shares["weight rounding"] > layer.shares["clipping"]
    assert layer.shares["weight rounding"] > 0.1


def test_numbers_are_those_of_whole_runs() -> None:
    model = calibrated(plain())
    errors, simulation = analyze_layers(model, BATCHES), Simulation(model.model)

    @torch.no_grad()
    def ratio(active) -> float:
        pairs = [(simulation.run(b, ()), simulation.run(b, active)) for b in BATCHES]
        return sqnr([(simulation.outputs(f), simulation.outputs(q)) for f, q in pairs])

    assert errors.model_db == pytest.approx(ratio(simulation.quantizers))
    assert errors.samples == len(BATCHES)
    quantizers = {
        "input x": [n for n in simulation.quantizers if n.args[0].op == "placeholder"],
        "fc": [n for n in simulation.quantizers if "fc" in str(n.args[0])],
    }
    for layer in errors.layers:
        assert sum(layer.shares.values()) == pytest.approx(1.0)
        if layer.name in quantizers:
            own = set(quantizers[layer.name])
            assert layer.only_db == pytest.approx(ratio(own))
            assert layer.without_db == pytest.approx(ratio(simulation.quantizers - own))


def test_every_quantizer_belongs_to_one_row() -> None:
    """Those behind a flatten and a pooling move with the layer whose values they hold."""
    from qcompiler.quantization.analyze import _rows

    module = Calls(
        lambda m, x: m.fc(nn.functional.max_pool2d((m.c1(x).relu() + m.c2(x)).sigmoid(), 4).flatten(1)),
        c1=nn.Conv2d(3, 4, 3, padding=1),
        c2=nn.Conv2d(3, 4, 3, padding=1),
        fc=nn.Linear(64, 5),
    ).eval()
    model = calibrated(module)
    simulation = Simulation(model.model)
    rows = _rows(model, simulation)
    owned = [q for row in rows for q in row.own]
    assert sorted(map(str, owned)) == sorted(map(str, simulation.quantizers))
    assert [row.name for row in rows] == ["input x", "c1", "c2", "sigmoid", "fc"]
    (table,) = (row for row in rows if row.operator == "sigmoid")
    assert len(table.outputs) == 3
