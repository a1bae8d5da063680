"""Runs a calibrated graph with any of its quantizers on or off.

A quantizer is a ``call_module`` node with an observer, as torchao's ``prepare_pt2e`` inserts them: where the compiled
model has a quantize and a dequantize operator. Switched on, it rounds its tensor to the observer's scale and zero
point; switched off, it lets it pass. What is computed between quantizers is float32, whose rounding differs from the
integer kernels' by a step of the output's scale now and then.

:class:`Prepared` runs nodes; what a node reads of a tensor is asked of a subclass. :class:`Simulation` switches
quantizers, :class:`~qcompiler.quantization.mixed.LayerSimulation` the precisions of layers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torchao.quantization.pt2e.observer import ObserverBase

from qcompiler.quantization.batch_norms import attribute
from qcompiler.quantization.operator_classes import aten

Values = dict[Node, Any]
"""What each node of a graph gave for one batch."""

_AS_RESHAPE: dict[Any, Any] = {aten.view.default: aten.reshape.default}
"""Where samples are stacked, a sample's axes may stand where they keep a view from being one."""

State = TypeVar("State")
"""What is rounded in a run, and what is not."""


@dataclass(frozen=True, eq=False)
class Grid:
    """The numbers that a tensor is rounded to: ``scale * (q - zero_point)`` for the integers q in [low, high].

    Attributes:
        scale: of the tensor, or float32 of a shape that broadcasts with it.
        zero_point: a whole number, or such numbers in float32, as the scale.
        low: the least q.
        high: the largest.
    """

    scale: float | torch.Tensor
    zero_point: float | torch.Tensor
    low: int
    high: int

    @classmethod
    def of(cls, observer: ObserverBase, rank: int) -> Grid:
        """That of a calibrated observer, one for the tensor or one a channel.

        Args:
            observer: the observer.
            rank: of the tensors that are rounded.
        """
        scale, zero_point = observer.calculate_qparams()
        low, high = observer.quant_min, observer.quant_max
        if scale.numel() == 1 and not hasattr(observer, "ch_axis"):
            return cls(float(scale), float(zero_point), low, high)
        shape = [-1 if axis == observer.ch_axis else 1 for axis in range(rank)]
        return cls(scale.float().reshape(shape), zero_point.float().reshape(shape), low, high)

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """A float32 tensor rounded, as PT2E's quantize and dequantize do it."""
        q = torch.round(value * (1.0 / self.scale)).add_(self.zero_point)
        return q.clamp(self.low, self.high).sub_(self.zero_point).mul_(self.scale)


class Prepared(ABC, Generic[State]):
    """A graph between ``prepare_pt2e`` and ``convert_pt2e``, with calibrated observers.

    Attributes:
        prepared: the graph.
        nodes: the graph's nodes in order.
        observers: each quantizer's observer; several quantizers may share one.
        output: the graph's last node.
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

    @abstractmethod
    def operands(self, reader: Node, values: Mapping[Node, Any], state: State) -> Callable[[Node], Any]:
        """What ``reader`` takes for the values of its inputs."""

    @staticmethod
    def is_constant(quantizer: Node) -> bool:
        """Whether a quantizer's tensor is a weight or another constant of the model."""
        source = quantizer.args[0]
        return isinstance(source, Node) and source.op == "get_attr"

    def constant(self, node: Node) -> torch.Tensor:
        """The value of a ``get_attr`` node."""
        return attribute(self.prepared, str(node.target)).detach()

    def quantized(self, quantizer: Node, value: torch.Tensor) -> torch.Tensor:
        """A float32 tensor, rounded as a quantizer rounds it; that of a constant is kept."""
        if not self.is_constant(quantizer):
            return fake_quantize(value, self.observers[quantizer])
        if quantizer not in self._weights:
            self._weights[quantizer] = fake_quantize(value, self.observers[quantizer])
        return self._weights[quantizer]

    def update(self, values: Values, nodes: Iterable[Node], state: State) -> Values:
        """Computes ``nodes``, in the graph's order, from ``values``, which get theirs."""
        for node in nodes:
            if node.op != "placeholder":
                values[node] = self.compute(node, values, state)
        return values

    def compute(self, node: Node, values: Mapping[Node, Any], state: State) -> Any:
        """One node's value from those of its inputs."""
        if node.op == "get_attr":
            return self.constant(node)
        operand = self.operands(node, values, state)
        if node.op == "call_module":
            return operand(*node.all_input_nodes)
        arguments = map_arg(node.args, operand)
        if node.op == "output":
            return arguments[0]
        assert callable(node.target), node
        function = _AS_RESHAPE.get(node.target, node.target)
        return function(*arguments, **map_arg(node.kwargs, operand)) if node.kwargs else function(*arguments)

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


class Simulation(Prepared[Collection[Node]]):
    """A calibrated graph whose quantizers are on or off; the state of a run are those that are on."""

    @property
    def quantizers(self) -> frozenset[Node]:
        return frozenset(self.observers)

    @property
    def activation_quantizers(self) -> list[Node]:
        return [n for n in self.observers if not self.is_constant(n)]

    def forget(self, quantizer: Node) -> None:
        """To be called after the constant of a quantizer, or its observer, was changed."""
        self._weights.pop(quantizer, None)

    def operands(
        self, reader: Node, values: Mapping[Node, Any], state: Collection[Node]
    ) -> Callable[[Node], Any]:
        if reader in self.observers and reader in state:
            return lambda source: self.quantized(reader, values[source])
        return values.__getitem__

    def run(self, batch: Sequence[torch.Tensor], active: Collection[Node]) -> Values:
        """Every node's value.

        Args:
            batch: a tensor a model input.
            active: the quantizers that are on.
        """
        inputs = iter(batch)
        values: Values = {n: next(inputs) for n in self.nodes if n.op == "placeholder"}
        return self.update(values, self.nodes, active)

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


def fake_quantize(value: torch.Tensor, observer: ObserverBase) -> torch.Tensor:
    """A float32 tensor rounded to the scale of a calibrated observer, one for the tensor or one a channel."""
    return Grid.of(observer, value.dim())(value)


def spread(batches: Sequence[tuple[torch.Tensor, ...]], samples: int) -> list[tuple[torch.Tensor, ...]]:
    """Batches evenly spread over all, with about ``samples`` samples together, and at least one batch."""
    size = max((len(t) if t.dim() else 1 for t in batches[0]), default=1)
    count = min(len(batches), max(1, samples // max(size, 1)))
    return [batches[k * len(batches) // count] for k in range(count)]
