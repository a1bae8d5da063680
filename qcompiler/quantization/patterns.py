"""Groups of nodes that one integer kernel computes, with a quantized tensor only at the group's borders.

- ``conv2d`` or ``linear``, then the sum with another tensor of the same shape, then a clamp around zero
  (relu, relu6, hardtanh ...); sum and clamp are optional. Batch norms are part of the weights already.
- ``add`` of two tensors, then a clamp.
- a connected region of elementwise operators computed from one tensor.
- any other operator with an integer kernel, alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from qcompiler.quantization.operator_classes import (
    MATMUL_CLASSES,
    Refusal,
    classify,
    is_binary_elementwise,
    is_clamp,
    is_float32,
    is_plain_sum,
    shape_of,
    tensor_inputs,
)
from qcompiler.quantization.regions import find_regions
from qcompiler.targets.base import QuantizationRules


@dataclass(frozen=True)
class Unit:
    """Nodes that one integer kernel computes.

    Attributes:
        kind: class of the kernel, one of :attr:`QuantizationRules.operators`.
        nodes: its nodes in topological order; the last one is the output.
        inputs: edges (producer, consumer) by which quantized activations enter.
    """

    kind: str
    nodes: tuple[Node, ...]
    inputs: tuple[tuple[Node, Node], ...]

    @property
    def output(self) -> Node:
        return self.nodes[-1]


class _Finder:
    """Collects units; a node belongs to one at most."""

    def __init__(self, nodes: Sequence[Node], kept: Mapping[Node, str], rules: QuantizationRules) -> None:
        self.nodes = nodes
        self.kept = kept
        self.rules = rules
        self.units: list[Unit] = []
        self.taken: set[Node] = set()
        self.kinds: dict[Node, str] = {}
        for node in nodes:
            kind = classify(node)
            if node not in kept and not isinstance(kind, Refusal) and kind in rules.operators:
                self.kinds[node] = kind

    def find(self) -> list[Unit]:
        self._matmuls()
        if "elementwise" in self.rules.operators:
            self._sums()
            for region in find_regions(self._elementwise()):
                self._take("elementwise", region.nodes)
        for node, kind in self.kinds.items():
            if node not in self.taken:
                self._take(kind, [node])
        return self.units

    def _take(self, kind: str, nodes: Sequence[Node]) -> None:
        inside, edges = set(nodes), []
        for node in nodes:
            sources = tensor_inputs(node)
            if kind in MATMUL_CLASSES and node is nodes[0]:
                sources = sources[:1]
            edges += [(source, node) for source in sources if source not in inside]
        self.units.append(Unit(kind, tuple(nodes), tuple(edges)))
        self.taken |= inside

    def _only_user(self, node: Node) -> Node | None:
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0] not in self.taken else None

    def _with_clamp(self, nodes: list[Node]) -> list[Node]:
        user = self._only_user(nodes[-1])
        if user is not None and self.kinds.get(user) == "elementwise" and is_clamp(user):
            return [*nodes, user]
        return nodes

    def _matmuls(self) -> None:
        matmuls = [n for n, kind in self.kinds.items() if kind in MATMUL_CLASSES]
        # Of two convolutions that meet in one sum, the later one takes it into its epilogue: when it runs,
        # the other addend exists already.
        for node in reversed(matmuls):
            nodes = [node]
            user = self._only_user(node)
            if user is not None and self.kinds.get(user) == "add" and is_plain_sum(user):
                addends = tensor_inputs(user)
                if len(addends) == 2 and shape_of(addends[0]) == shape_of(addends[1]):
                    nodes.append(user)
            self._take(self.kinds[node], self._with_clamp(nodes))

    def _elementwise(self) -> list[Node]:
        """Free nodes that may be part of a region; ``x - y`` may, though it has no kernel of its own."""
        return [
            n
            for n in self.nodes
            if n not in self.taken
            and n not in self.kept
            and (self.kinds.get(n) == "elementwise" or (is_binary_elementwise(n) and is_float32(n)))
        ]

    def _sums(self) -> None:
        """Sums of different tensors, with the clamps that would otherwise begin a region."""
        in_regions = {n for region in find_regions(self._elementwise()) for n in region.nodes}
        for node, kind in self.kinds.items():
            if kind == "add" and node not in self.taken and node not in in_regions:
                self._take("add", self._with_clamp([node]))


def find_units(nodes: Sequence[Node], kept: Mapping[Node, str], rules: QuantizationRules) -> list[Unit]:
    """Every unit that the rules allow, whether or not it is worth computing in integers.

    Args:
        nodes: the graph's ``call_function`` nodes in topological order.
        kept: nodes that stay in float.
        rules: what the target's kernels accept.
    """
    return _Finder(nodes, kept, rules).find()
