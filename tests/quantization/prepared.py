"""Calibrated graphs of small networks, and a network with a channel that its quantization cannot bear."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from small_networks import SHAPE, Calls, settle
from torch import nn
from torch.fx import GraphModule

from qcompiler.config import CompileConfig
from qcompiler.quantization.batch_norms import rewrite_batch_norms
from qcompiler.quantization.optimize.effects import Batch
from qcompiler.quantization.quantizer import Calibrated, calibrate, canonical_graph
from qcompiler.quantization.simulation import Simulation
from qcompiler.targets.base import QuantizationRules

BATCHES: list[Batch] = [(torch.randn(SHAPE, generator=torch.Generator().manual_seed(k)),) for k in range(12)]


def calibrated(
    module: nn.Module,
    config: CompileConfig | None = None,
    batches: Sequence[Batch] = BATCHES,
    rules: QuantizationRules | None = None,
) -> Calibrated:
    program = torch.export.export(module, batches[0])
    return calibrate(program, rules or QuantizationRules(), batches, config or CompileConfig())


def simulated(
    module: nn.Module,
    config: CompileConfig | None = None,
    batches: Sequence[Batch] = BATCHES,
    rules: QuantizationRules | None = None,
) -> Simulation:
    return Simulation(calibrated(module, config, batches, rules).model)


def float_graph(module: nn.Module, batches: Sequence[Batch] = BATCHES) -> GraphModule:
    """The canonical graph of a module, its batch norms folded."""
    model, _ = canonical_graph(torch.export.export(module, batches[0]))
    rewrite_batch_norms(model, depthwise=True)
    return model


def plain() -> nn.Module:
    """Three convolutions with batch norms, and a linear layer; the same at each call."""
    torch.manual_seed(7)
    layers = {
        "c1": nn.Conv2d(3, 8, 3, padding=1), "b1": nn.BatchNorm2d(8),
        "c2": nn.Conv2d(8, 8, 3, padding=1), "b2": nn.BatchNorm2d(8),
        "c3": nn.Conv2d(8, 8, 3, padding=1), "b3": nn.BatchNorm2d(8),
        "fc": nn.Linear(8, 4),
    }  # fmt: skip

    def forward(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        for conv, norm in ((m.c1, m.b1), (m.c2, m.b2), (m.c3, m.b3)):
            x = norm(conv(x)).relu()
        return m.fc(x.mean((2, 3)))

    return settle(Calls(forward, **layers))


def damaged(factor: float = 300.0) -> nn.Module:
    """As :func:`plain`; channel 5 of ``c2`` is ``factor`` times as large, and ``c3`` reads it so much smaller.

    The function is the same, but one scale for the eight channels leaves the other seven a step or two.
    """
    module = plain()
    with torch.no_grad():
        module.b2.weight[5] *= factor
        module.b2.bias[5] *= factor
        module.c3.weight[:, 5] /= factor
    return module
