"""Small networks that the tests of quantization share, and how they are quantized."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Node

from qcompiler.config import CompileConfig
from qcompiler.quantization import FloatOperator, quantize
from qcompiler.targets.base import QuantizationRules

SHAPE = (1, 3, 16, 16)
Q = torch.ops.quantized_decomposed


class Calls(nn.Module):
    """Modules by name and a function of them and the input, so that a test writes only what it is about."""

    def __init__(
        self, forward: Callable[[nn.Module, torch.Tensor], torch.Tensor], **modules: nn.Module
    ) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self._forward = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._forward(self, x)


@dataclass(frozen=True)
class Quantized:
    """A quantized program beside the float module that it came from."""

    module: nn.Module
    program: ExportedProgram
    float_operators: list[FloatOperator]

    @property
    def nodes(self) -> list[Node]:
        return [n for n in self.program.graph.nodes if n.op == "call_function"]

    def named(self, name: str) -> list[Node]:
        """Nodes of an operator of aten, in order."""
        return [n for n in self.nodes if str(n.target).startswith(f"aten.{name}.")]

    def only(self, name: str) -> Node:
        (node,) = self.named(name)
        return node

    def sqnr(self) -> float:
        """Signal to quantization noise of the outputs on fresh inputs, in dB."""
        inputs = [torch.randn(SHAPE, generator=torch.Generator().manual_seed(k)) for k in range(100, 116)]
        quantized = self.program.module()
        with torch.no_grad():
            expected = torch.cat([self.module(x).flatten() for x in inputs])
            actual = torch.cat([quantized(x).flatten() for x in inputs])
        return float(10 * torch.log10(expected.square().sum() / (expected - actual).square().sum()))


def settle(module: nn.Module) -> nn.Module:
    """Batch norms get statistics from a few forward passes, and weights that are not all one."""
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d) and child.affine:
            nn.init.uniform_(child.weight, 0.5, 1.5)
            nn.init.uniform_(child.bias, -0.5, 0.5)
    module.train()
    with torch.no_grad():
        for _ in range(4):
            module(torch.randn(4, *SHAPE[1:]))
    return module.eval()


def quantized(
    module: nn.Module, config: CompileConfig | None = None, rules: QuantizationRules | None = None
) -> Quantized:
    module = settle(module)
    program = torch.export.export(module, (torch.randn(SHAPE),))
    batches = [(torch.randn(SHAPE, generator=torch.Generator().manual_seed(k)),) for k in range(16)]
    result, floats = quantize(program, rules or QuantizationRules(), batches, config or CompileConfig())
    return Quantized(module, result, floats)


def is_quantize(node: Node) -> bool:
    return node.target is Q.quantize_per_tensor.default


def is_dequantize(node: object) -> bool:
    return isinstance(node, Node) and node.target is Q.dequantize_per_tensor.default


def scale_out(node: Node) -> tuple[float, int]:
    """Scale and zero point that a node's result is quantized with at once."""
    (user,) = node.users
    assert is_quantize(user), user
    return user.args[1], user.args[2]


def scale_in(node: Node) -> tuple[float, int]:
    """Scale and zero point of a node's first operand."""
    source = node.all_input_nodes[0]
    assert is_dequantize(source), source
    return source.args[1], source.args[2]
