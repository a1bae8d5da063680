"""The simulation against PT2E's own quantized program, and layers alone against computing everything anew."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from small_networks import SHAPE, Calls, settle
from torch import nn

from qcompiler.config import CompileConfig
from qcompiler.frontend.capture import capture
from qcompiler.quantization import mixed, quantize
from qcompiler.quantization.mixed import LayerSimulation
from qcompiler.quantization.plan import Plan
from qcompiler.quantization.quantizer import calibrate
from qcompiler.targets.base import QuantizationRules

RULES = QuantizationRules()


def network() -> Calls:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(m.norm(m.first(x)))
        z = F.relu(m.second(y) + y)
        z = F.max_pool2d(z * torch.sigmoid(m.gate(z)), 2)
        return m.fc(F.adaptive_avg_pool2d(z, 1).flatten(1))

    module = Calls(
        forward, first=nn.Conv2d(3, 8, 3), norm=nn.BatchNorm2d(8), second=nn.Conv2d(8, 8, 3, padding=1),
        gate=nn.Conv2d(8, 8, 1), fc=nn.Linear(8, 5),
    )  # fmt: skip
    return settle(module)  # type: ignore[return-value]


def batches(count: int, first: int = 0) -> list[tuple[torch.Tensor, ...]]:
    seeds = range(first, first + count)
    return [(torch.randn(SHAPE, generator=torch.Generator().manual_seed(k)),) for k in seeds]


@pytest.fixture(scope="module")
def module() -> Calls:
    torch.manual_seed(0)
    return network()


@pytest.fixture(scope="module")
def simulation(module: Calls) -> LayerSimulation:
    program = capture(module, (torch.zeros(SHAPE),))
    return LayerSimulation(calibrate(program, RULES, batches(8), CompileConfig()))


def test_the_layers_and_the_network(simulation: LayerSimulation) -> None:
    names = ["first", "second", "gate", "sigmoid", "mul", "adaptive_avg_pool2d", "fc"]
    assert list(simulation.layers) == names
    sites = {site.name: k for k, site in enumerate(simulation.network.sites)}
    moving = [site.name for site in simulation.network.sites if site.moves]
    assert moving == ["(max_pool2d)", "(view)"]
    assert simulation.network.origins(sites["adaptive_avg_pool2d"]) == {sites["mul"]}
    assert simulation.network.consumers(sites["second"]) == {sites["gate"], sites["mul"]}
    (image,) = [t for t in simulation.network.tensors if t.producer is None]
    assert image.readers == (sites["first"],)


def test_nothing_in_integers_is_the_float_model(module: Calls, simulation: LayerSimulation) -> None:
    data = batches(5, 50)
    (found,) = simulation.run({}, data)
    with torch.no_grad():
        wanted = torch.stack([module(x) for (x,) in data])
    # The batch norm is folded into the weights: a different rounding of each sum.
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kept", [(), ("second",), ("first", "gate", "fc")])
def test_a_plan_is_what_quantization_makes_of_it(
    module: Calls, simulation: LayerSimulation, kept: tuple[str, ...], tmp_path: Path
) -> None:
    Plan(dict.fromkeys(kept, "fp32")).save(tmp_path / "plan.json")
    program = capture(module, (torch.zeros(SHAPE),))
    quantized, _ = quantize(program, RULES, batches(8), CompileConfig(plan=tmp_path / "plan.json"))
    data = batches(6, 60)
    (found,) = simulation.run({name: "int8" for name in simulation.layers if name not in kept}, data)
    with torch.no_grad():
        wanted = torch.stack([quantized.module()(x) for (x,) in data])
    # Both round to the same grids; a sum near the middle of two steps may fall to either side of it.
    assert (found - wanted).square().sum() <= 1e-4 * wanted.square().sum()
    assert (found - simulation.run({}, data)[0]).square().sum() > 1e-5 * wanted.square().sum()


def test_layers_alone_are_what_a_run_with_one_layer_gives(
    simulation: LayerSimulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = batches(7, 70)
    monkeypatch.setattr(mixed, "CHUNK_ELEMENTS", 25_000)  # several chunks
    parts: dict[str, list[torch.Tensor]] = {}
    firsts = []
    for name, precision, first, found, exact in simulation.alone(data):
        assert precision == "int8"
        parts.setdefault(name, []).append(found[0])
        firsts.append(first)
        assert torch.equal(exact[0], simulation.run({}, data[first : first + len(exact[0])])[0])
    assert len(set(firsts)) > 1
    assert list(parts) == list(simulation.layers)
    whole = {name: torch.cat(found) for name, found in parts.items()}
    (second,) = simulation.run({"second": "int8"}, data)
    assert torch.equal(whole["second"], second)
    (exact,) = simulation.run({}, data)
    assert all((found != exact).any() for found in whole.values())


@pytest.mark.parametrize("multiplies", [True, False])
def test_a_float_of_16_bits_rounds_weights_and_where_it_is_multiplied_what_is_read(multiplies: bool) -> None:
    module = Calls(
        lambda m, x: m.fc(m.second(m.first(x)).mean((2, 3))),
        first=nn.Conv2d(3, 8, 3), second=nn.Conv2d(8, 8, 1), fc=nn.Linear(8, 5),
    ).eval()  # fmt: skip
    program = capture(module, (torch.zeros(SHAPE),))
    simulation = LayerSimulation(calibrate(program, RULES, batches(2), CompileConfig()), multiplies)
    data = batches(3, 90)

    def half(x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().float()

    def conv(x: torch.Tensor, layer: nn.Module) -> torch.Tensor:
        return F.conv2d(half(x) if multiplies else x, half(layer.weight), layer.bias)  # type: ignore[arg-type]

    with torch.no_grad():
        wanted = torch.stack(
            [module.fc(conv(conv(x, module.first), module.second).mean((2, 3))) for (x,) in data]
        )
    (found,) = simulation.run({"first": "bf16", "second": "bf16"}, data)
    # Sums over stacked samples are taken in another order; where that crosses the middle of two bfloat16, a step of one
    # input of a sum of eight.
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    (exact,) = simulation.run({}, data)
    assert (found - exact).abs().max() > (found - wanted).abs().max()
    alone = {(name, p): found for name, p, _, (found,), _ in simulation.alone(data, ("int8", "bf16"))}
    assert torch.equal(alone["first", "bf16"], simulation.run({"first": "bf16"}, data)[0])
    assert set(alone) == {(name, p) for name in ("first", "second", "fc") for p in ("int8", "bf16")} | {
        ("mean", "int8")
    }
