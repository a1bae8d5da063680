"""Which of the possible units are computed in integers, and why every other node stays in float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from qcompiler.quantization.operator_classes import (
    MATMUL_CLASSES,
    SHARING_CLASSES,
    Refusal,
    classify,
    tensor_inputs,
)
from qcompiler.quantization.patterns import Unit
from qcompiler.targets.base import QuantizationRules


@dataclass(frozen=True)
class Selection:
    """The units computed in integers.

    Attributes:
        units: in no particular order.
        float_output: the units among them whose result is float32: nothing that follows computes in integers.
    """

    units: tuple[Unit, ...]
    float_output: frozenset[Node]


class _Flow:
    """Where quantized tensors come from and go to, among the units that are still in."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self.alive = list(units)
        self.by_output = {u.output: u for u in units}
        self.by_node = {n: u for u in units for n in u.nodes}

    def drop(self, unit: Unit) -> None:
        self.alive.remove(unit)
        del self.by_output[unit.output]
        for node in unit.nodes:
            del self.by_node[node]

    def feeds(self, unit: Unit) -> bool:
        """Whether an integer kernel that computes, rather than moves, takes the unit's result."""
        pending, seen = [unit.output], set()
        while pending:
            for user in pending.pop().users:
                consumer = self.by_node.get(user)
                if consumer is None or user in seen:
                    continue
                seen.add(user)
                if consumer.kind not in SHARING_CLASSES:
                    return True
                pending.append(consumer.output)
        return False

    def emits_quantized(self, unit: Unit) -> bool:
        return unit.kind not in MATMUL_CLASSES or len(unit.nodes) > 1 or self.feeds(unit)

    def comes_quantized(self, node: Node) -> bool:
        """Whether a tensor is the result of an integer kernel, possibly moved since."""
        unit = self.by_output.get(node)
        while unit is not None and unit.kind in SHARING_CLASSES:
            unit = self.by_output.get(unit.inputs[0][0])
        return unit is not None and self.emits_quantized(unit)

    def worthwhile(self, unit: Unit) -> bool:
        if unit.kind in MATMUL_CLASSES:
            return True
        comes = any(self.comes_quantized(source) for source, _ in unit.inputs)
        # Rounding a float tensor only to add or scale it gains nothing; moving it before it is rounded anyway
        # moves a quarter of the bytes.
        may_begin = unit.kind in SHARING_CLASSES or unit.kind == "avg_pool2d"
        return comes or (may_begin and self.feeds(unit))


def select(units: Sequence[Unit]) -> Selection:
    """The largest set of units in which each takes part in integer arithmetic."""
    flow = _Flow(units)
    while idle := [u for u in flow.alive if not flow.worthwhile(u)]:
        for unit in idle:
            flow.drop(unit)
    floats = frozenset(u.output for u in flow.alive if not flow.emits_quantized(u))
    return Selection(tuple(flow.alive), floats)


def float_reason(node: Node, kept: Mapping[Node, str], rules: QuantizationRules) -> str:
    """Why a node that is in no selected unit stays in float."""
    if node in kept:
        return kept[node]
    kind = classify(node)
    if isinstance(kind, Refusal):
        return kind.reason
    if kind not in rules.operators:
        return f"the target has no integer kernel of class {kind}"
    if kind in SHARING_CLASSES:
        return "its input and its output are float"
    sources = ", ".join(n.name for n in tensor_inputs(node))
    return f"its inputs are float ({sources}); quantizing them for this alone would only lose accuracy"
