"""The simulation: quantizers off is the float model, all on is the converted one, and any state between."""

from __future__ import annotations

import torch
from prepared import BATCHES, simulated
from small_networks import Calls, settle
from torch import nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e

from qcompiler.config import CompileConfig
from qcompiler.quantization.choose_ranges import choose_ranges
from qcompiler.quantization.observers import AutoObserver
from qcompiler.quantization.simulation import Simulation, spread


def residual() -> nn.Module:
    return settle(
        Calls(
            lambda m, x: m.fc((m.c2(m.c1(x).relu()) + m.c1(x).relu()).mean((2, 3))),
            c1=nn.Conv2d(3, 8, 3, padding=1),
            c2=nn.Conv2d(8, 8, 3, padding=1),
            fc=nn.Linear(8, 4),
        )
    )


def prepared(module: nn.Module, config: CompileConfig | None = None) -> Simulation:
    return simulated(module, config)


def test_without_quantizers_it_is_the_float_model() -> None:
    module = residual()
    simulation = prepared(module)
    (found,) = simulation.outputs(simulation.run(BATCHES[0], ()))
    # The same operators on the same values.
    assert torch.equal(found, module(*BATCHES[0]))


def test_with_all_quantizers_it_is_the_converted_model() -> None:
    simulation = prepared(residual())
    (found,) = simulation.outputs(simulation.run(BATCHES[0], simulation.quantizers))
    with torch.no_grad():
        expected = convert_pt2e(simulation.prepared)(*BATCHES[0])
    # A value at the middle of a step may round to either side, and differ by a step of the next tensor.
    assert torch.allclose(found, expected, atol=0.02 * float(expected.abs().max()))


def test_what_is_computed_anew_is_what_a_whole_run_gives() -> None:
    simulation = prepared(residual())
    base = simulation.run(BATCHES[0], ())
    for quantizer in simulation.quantizers:
        before = dict(base)
        (found,) = simulation.rerun(base, [quantizer], {quantizer})
        (expected,) = simulation.outputs(simulation.run(BATCHES[0], {quantizer}))
        assert torch.equal(found, expected), quantizer
        assert base == before


def test_downstream_ends_where_it_is_told() -> None:
    simulation = prepared(residual())
    (x,) = (n for n in simulation.activation_quantizers if n.args[0].op == "placeholder")
    reached = simulation.downstream([x], stops=simulation.quantizers - {x})
    assert [n for n in reached if n.op == "call_module"] == [
        x, *(n for n in simulation.activation_quantizers if str(n.args[0]) in ("relu", "relu_1")),
    ]  # fmt: skip
    assert simulation.output in simulation.downstream([x])


def test_auto_takes_the_range_of_the_least_error_where_it_is_read() -> None:
    """An outlier that meets a weight of zero costs nothing when it is clipped, however large it is."""
    module = Calls(lambda m, x: m.c2(m.c1(x)), c1=nn.Conv2d(3, 2, 1), c2=nn.Conv2d(2, 2, 1)).eval()
    with torch.no_grad():
        module.c1.weight[1] *= 1000.0
        module.c2.weight[:, 1] = 0.0
    simulation = prepared(module, CompileConfig(calibration_method="auto", percentile=60.0))
    chosen = choose_ranges(simulation, BATCHES)
    assert sum(chosen.values()) == len(simulation.activation_quantizers)
    (between,) = (n for n in simulation.activation_quantizers if str(n.args[0]) == "conv2d")
    observer = simulation.observers[between]
    assert isinstance(observer, AutoObserver)
    errors = {}
    for method in observer.candidates():
        observer.choose(method)
        pairs = [(simulation.run(b, ()), simulation.run(b, {between})) for b in BATCHES]
        differences = [simulation.outputs(f)[0] - simulation.outputs(q)[0] for f, q in pairs]
        errors[method] = float(torch.cat(differences).square().sum())
    choose_ranges(simulation, BATCHES)
    assert errors[observer.choice] == min(errors.values())
    assert errors[observer.choice] < 0.5 * errors["minmax"]


def test_spread_takes_whole_batches_from_everywhere() -> None:
    batches = [(torch.full((4, 2), float(k)),) for k in range(10)]
    assert [int(b[0][0, 0]) for b in spread(batches, 16)] == [0, 2, 5, 7]
    assert len(spread(batches, 1)) == 1
    assert spread(batches, 1000) == batches
