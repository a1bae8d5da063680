"""The quantizer for torchao's PT2E: annotates the graph by the target's rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantizer import (
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    Quantizer,
    SharedQuantizationSpec,
)

from qcompiler.config import CompileConfig
from qcompiler.quantization.layers import LAYER, name_layers, name_sites
from qcompiler.quantization.observers import MinMaxObserver, activation_observer
from qcompiler.quantization.operator_classes import (
    MATMUL_CLASSES,
    SHARING_CLASSES,
    classify,
    computes_float,
    operator_name,
    tensor_inputs,
)
from qcompiler.quantization.patterns import Unit, find_units
from qcompiler.quantization.places import FloatOperator, kept_float, place
from qcompiler.quantization.plan import Plan
from qcompiler.quantization.selection import Selection, float_reason, select
from qcompiler.quantization.weights import PerChannelWeightObserver
from qcompiler.targets.base import QuantizationRules

_ANNOTATION = "quantization_annotation"


def _first_of_group(groups: dict[Node, Node], node: Node) -> Node:
    while groups[node] is not node:
        node = groups[node]
    return node


def _concat_groups(selection: Selection, order: dict[Node, int]) -> dict[Node, Node]:
    """For each output that shares its scale with a concatenation: the first output of the group.

    A result that goes into one concatenation only is quantized with the concatenation's scale at once: it
    will be rounded to that scale anyway, and rounding it once is better than twice. A result with further
    users keeps its own scale, and the concatenation rescales it; were it to share, a chain of concatenations
    (DenseNet) would end up with one scale for a whole stage, the coarsest.
    """
    by_output = {u.output: u for u in selection.units}
    groups: dict[Node, Node] = {}
    for unit in selection.units:
        if unit.kind != "concat":
            continue
        for source, _ in unit.inputs:
            producer = by_output.get(source)
            if producer is None or producer.kind in SHARING_CLASSES or len(source.users) != 1:
                continue
            for node in (source, unit.output):
                groups.setdefault(node, node)
            first, second = sorted(
                (_first_of_group(groups, source), _first_of_group(groups, unit.output)), key=order.__getitem__
            )
            groups[second] = first
    return {node: _first_of_group(groups, node) for node in groups}


class TargetQuantizer(Quantizer):  # type: ignore[misc]
    """Annotates a graph by a target's rules.

    Args:
        rules: what the target's kernels accept.
        config: the observer, and what stays in float.
        observer: constructor of what is put where a tensor is quantized; None for the observers of ``config``.

    Attributes:
        float_operators: after ``annotate``, the operators left in float, in the graph's order. What merely
            moves a tensor between them is not named.
        selection: after ``annotate``, the units computed in integers.
    """

    def __init__(
        self, rules: QuantizationRules, config: CompileConfig, observer: Callable[..., Any] | None = None
    ) -> None:
        super().__init__()
        self.rules = rules
        self.config = config
        self.float_operators: list[FloatOperator] = []
        self.selection = Selection((), frozenset())
        self._activation = self._activation_spec(observer or activation_observer(config))
        self._constant = self._activation_spec(observer or MinMaxObserver)
        self._weight = QuantizationSpec(
            dtype=torch.int8,
            observer_or_fake_quant_ctr=PerChannelWeightObserver,
            quant_min=rules.weight_range[0],
            quant_max=rules.weight_range[1],
            qscheme=torch.per_channel_symmetric,
            ch_axis=0,
        )

    def _activation_spec(self, observer: Callable[..., Any]) -> QuantizationSpec:
        return QuantizationSpec(
            dtype=torch.uint8,
            observer_or_fake_quant_ctr=observer,
            quant_min=self.rules.activation_range[0],
            quant_max=self.rules.activation_range[1],
            qscheme=torch.per_tensor_symmetric
            if self.config.symmetric_activations
            else torch.per_tensor_affine,
        )

    def annotate(self, model: GraphModule) -> GraphModule:
        nodes = [n for n in model.graph.nodes if n.op == "call_function"]
        order = {node: i for i, node in enumerate(model.graph.nodes)}
        kept = {**self._planned(nodes), **kept_float(nodes, self.config)}
        self.selection = select(find_units(nodes, kept, self.rules))
        groups = _concat_groups(self.selection, order)
        for unit in self.selection.units:
            self._annotate(unit, groups)
        inside = {n for u in self.selection.units for n in u.nodes}
        self.float_operators = [
            FloatOperator(operator_name(n), place(n), float_reason(n, kept, self.rules))
            for n in nodes
            if n not in inside and computes_float(n) and (n in kept or not self._follows(n))
        ]
        return model

    def _planned(self, nodes: list[Node]) -> dict[Node, str]:
        """The nodes of the layers that the plan leaves in float, with the reason; every layer's nodes get its name."""
        units = find_units(nodes, {}, self.rules)
        layers = name_layers(units, nodes)
        for name, unit in name_sites(units, nodes).items():
            for node in unit.nodes:
                node.meta[LAYER] = name
        if self.config.plan is None:
            return {}
        plan = Plan.load(self.config.plan)
        plan.check(layers)
        return {
            node: plan.reason(name)
            for name, unit in layers.items()
            if plan.precision(name) != "int8"
            for node in unit.nodes
        }

    def _follows(self, node: Node) -> bool:
        """Whether a node only moves what it is given, and would move integers as well."""
        return classify(node) == "data_movement" and "data_movement" in self.rules.operators

    def _annotate(self, unit: Unit, groups: dict[Node, Node]) -> None:
        annotations = {node: QuantizationAnnotation(_annotated=True) for node in unit.nodes}
        for source, consumer in unit.inputs:
            if not isinstance(source.meta.get("val"), torch.Tensor):
                continue  # an element of a split, which the split's own input stands for
            spec = self._constant if source.op == "get_attr" else self._activation
            annotations[consumer].input_qspec_map[source] = spec
        if unit.kind in MATMUL_CLASSES:
            weight = unit.nodes[0].args[1]
            annotations[unit.nodes[0]].input_qspec_map[weight] = self._weight
        annotations[unit.output].output_qspec = self._output_spec(unit, groups)
        for node, annotation in annotations.items():
            node.meta[_ANNOTATION] = annotation

    def _output_spec(self, unit: Unit, groups: dict[Node, Node]) -> QuantizationSpecBase | None:
        if unit.output in self.selection.float_output or not isinstance(
            unit.output.meta["val"], torch.Tensor
        ):
            return None
        if unit.kind in SHARING_CLASSES:
            source, consumer = unit.inputs[0]
            while not isinstance(source.meta["val"], torch.Tensor):  # getitem of a split
                source, consumer = tensor_inputs(source)[0], source
            return SharedQuantizationSpec((source, consumer))
        first = groups.get(unit.output, unit.output)
        return self._activation if first is unit.output else SharedQuantizationSpec(first)

    def validate(self, model: GraphModule) -> None:
        """Nothing is left to check: only what the rules allow was annotated."""
