"""Runs a calibrated graph with any of its quantizers on or off.

A quantizer is a ``call_module`` node with an observer, as torchao's ``prepare_pt2e`` inserts them: where the compiled
model has a quantize and a dequantize operator. Switched on, it rounds its tensor to the observer's scale and zero
point; switched off, it lets it pass. What is computed between quantizers is float32, whose rounding differs from the
integer kernels' by a step of the output's scale now and then.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torchao.quantization.pt2e.observer import ObserverBase

from qcompiler.quantization.batch_norms import attribute

Values = dict[Node, Any]
"""What each node of a graph gave for one batch."""


class Simulation:
    """A graph between ``prepare_pt2e`` and ``convert_pt2e``, with calibrated observers.

    Attributes:
        nodes: the graph's nodes in order.
        observers: each quantizer's observer; several quantizers may share one.
    """

    def __init__(self, prepared: GraphModule) -> None:
        self.prepared = prepared
        self.nodes: list[Node] = list(prepared.graph.nodes)
        modules = dict(prepared.named_modules(remove_duplicate=False))
        self.observers: dict[Node, ObserverBase] = {
            n: modules[str(n.target)] for n in self.nodes if n.op == "call_module"
        }
        (self.output,) = (n for n in self.nodes if n.op == "output")
        self._position = {node: i for i, node in enumerate(self.nodes)}
        self._weights: dict[Node, torch.Tensor] = {}

    @property
    def quantizers(self) -> frozenset[Node]:
        return frozenset(self.observers)

    @property
    def activation_quantizers(self) -> list[Node]:
        return [n for n in self.observers if not self.is_constant(n)]

    @staticmethod
    def is_constant(quantizer: Node) -> bool:
        """Whether a quantizer's tensor is a weight or another constant of the model."""
        source = quantizer.args[0]
        return isinstance(source, Node) and source.op == "get_attr"

    def forget(self, quantizer: Node) -> None:
        """To be called after the constant of a quantizer, or its observer, was changed."""
        self._weights.pop(quantizer, None)

    def quantized(self, quantizer: Node, value: torch.Tensor) -> torch.Tensor:
        """A float32 tensor, rounded as a quantizer rounds it."""
        if not self.is_constant(quantizer):
            return fake_quantize(value, self.observers[quantizer])
        if quantizer not in self._weights:
            self._weights[quantizer] = fake_quantize(value, self.observers[quantizer])
        return self._weights[quantizer]

    def run(self, batch: Sequence[torch.Tensor], active: Collection[Node]) -> Values:
        """Every node's value.

        Args:
            batch: a tensor a model input.
            active: the quantizers that are on.
        """
        inputs = iter(batch)
        values: Values = {n: next(inputs) for n in self.nodes if n.op == "placeholder"}
        return self.update(values, self.nodes, active)

    def update(self, values: Values, nodes: Iterable[Node], active: Collection[Node]) -> Values:
        """Computes ``nodes``, in the graph's order, from ``values``, which get theirs."""
        for node in nodes:
            if node.op != "placeholder":
                values[node] = self.compute(node, values, active)
        return values

    def compute(self, node: Node, values: Mapping[Node, Any], active: Collection[Node]) -> Any:
        """One node's value from those of its inputs."""
        if node.op == "get_attr":
            return attribute(self.prepared, str(node.target)).detach()
        if node.op == "call_module":
            (source,) = node.all_input_nodes
            value = values[source]
            assert isinstance(value, torch.Tensor), node
            return self.quantized(node, value) if node in active else value
        arguments = map_arg(node.args, values.__getitem__)
        if node.op == "output":
            return arguments[0]
        assert callable(node.target), node
        return node.target(*arguments, **map_arg(node.kwargs, values.__getitem__))

    def rerun(
        self, values: Mapping[Node, Any], changed: Collection[Node], active: Collection[Node]
    ) -> tuple[torch.Tensor, ...]:
        """The model's outputs when the ``changed`` nodes are computed anew, and all that depends on them.

        Args:
            values: of a run, which stay as they are.
            changed: quantizers that are in another state than in that run.
            active: the quantizers that are on.
        """
        found = self.update(dict(values), self.downstream(changed), active)
        return self.outputs(found)

    def outputs(self, values: Mapping[Node, Any]) -> tuple[torch.Tensor, ...]:
        """The model's outputs of floating-point numbers, from the values of a run."""
        leaves = torch.utils._pytree.tree_leaves(values[self.output])
        return tuple(v for v in leaves if isinstance(v, torch.Tensor) and v.is_floating_point())

    def downstream(self, starts: Collection[Node], stops: Collection[Node] = ()) -> list[Node]:
        """The nodes ``starts`` and all that depend on them, in order; not what depends on ``stops`` alone."""
        found: set[Node] = set()
        pending = list(starts)
        while pending:
            node = pending.pop()
            if node in found:
                continue
            found.add(node)
            if node not in stops:
                pending += list(node.users)
        return sorted(found, key=self._position.__getitem__)


def fake_quantize(value: torch.Tensor, observer: ObserverBase) -> torch.Tensor:
    """A float32 tensor rounded to the scale of a calibrated observer, one for the tensor or one a channel."""
    scale, zero_point = observer.calculate_qparams()
    low, high = observer.quant_min, observer.quant_max
    if scale.numel() > 1 or hasattr(observer, "ch_axis"):
        # torch takes zero points of 32 bits for channels.
        return torch.fake_quantize_per_channel_affine(
            value, scale, zero_point.int(), observer.ch_axis, low, high
        )
    return torch.fake_quantize_per_tensor_affine(value, float(scale), int(zero_point), low, high)


def spread(batches: Sequence[tuple[torch.Tensor, ...]], samples: int) -> list[tuple[torch.Tensor, ...]]:
    """Batches evenly spread over all, with about ``samples`` samples together, and at least one batch."""
    size = max((len(t) if t.dim() else 1 for t in batches[0]), default=1)
    count = min(len(batches), max(1, samples // max(size, 1)))
    return [batches[k * len(batches) // count] for k in range(count)]
