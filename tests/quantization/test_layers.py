"""Names of layers in plans."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from small_networks import SHAPE, Calls
from torch import nn

from qcompiler.frontend.capture import capture
from qcompiler.quantization.layers import name_layers
from qcompiler.quantization.patterns import find_units
from qcompiler.targets.base import QuantizationRules


def names(module: nn.Module) -> dict[str, str]:
    graph = capture(module.eval(), (torch.randn(SHAPE),)).module().graph
    nodes = [n for n in graph.nodes if n.op == "call_function"]
    return {
        name: unit.kind
        for name, unit in name_layers(find_units(nodes, {}, QuantizationRules()), nodes).items()
    }


def test_modules_functions_and_repetitions() -> None:
    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        y = m.block(x)
        y = m.block[0](y)  # called twice
        z = F.hardswish(y)
        return torch.cat([F.max_pool2d(z, 2), F.avg_pool2d(y, 2)], 1)

    block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Hardswish())
    assert names(Calls(forward, block=block)) == {
        "block.0": "conv2d",
        "block.1": "elementwise",
        "block.0#2": "conv2d",
        "hardswish": "elementwise",
        "avg_pool2d": "avg_pool2d",
        "cat": "concat",
    }


def test_function_inside_a_submodule_carries_its_path() -> None:
    inner = Calls(lambda m, x: m.conv(x) + x, conv=nn.Conv2d(3, 3, 1))
    assert names(Calls(lambda m, x: F.relu(m.inner(x) * x), inner=inner)) == {
        "inner.conv": "conv2d",
        "mul": "mul",
        "relu": "elementwise",
    }
