"""Layers of a model as a plan names them: the units of nodes that one kernel can compute."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch.fx import Node

from qcompiler.config import CompileConfig, Precision
from qcompiler.quantization.operator_classes import SHARING_CLASSES, aten, operator_name
from qcompiler.quantization.patterns import Unit
from qcompiler.quantization.places import module_path, precision
from qcompiler.quantization.plan import Plan

LAYER = "qcompiler_layer"
"""Key of ``Node.meta``: name of the layer that a node belongs to."""


def name_layers(units: Iterable[Unit], nodes: Iterable[Node]) -> dict[str, Unit]:
    """The units that compute, by name, in the order of their last nodes.

    A unit is named after the module of its first node: ``layer1.0.conv1``. A function that a module with children
    calls, such as ``+``, is named after the operator too: ``layer1.0.add``. A second unit of the same name gets
    ``#2`` behind it. Units that only move values (:data:`SHARING_CLASSES`) have no precision of their own.

    Args:
        units: from :func:`~qcompiler.quantization.patterns.find_units`.
        nodes: the graph's nodes in topological order.
    """
    order = {node: i for i, node in enumerate(nodes)}
    named: dict[str, Unit] = {}
    counts: dict[str, int] = {}
    for unit in sorted(units, key=lambda u: order[u.output]):
        if unit.kind in SHARING_CLASSES:
            continue
        name = _name(unit.nodes[0])
        counts[name] = counts.get(name, 0) + 1
        named[name if counts[name] == 1 else f"{name}#{counts[name]}"] = unit
    return named


def name_sites(units: Sequence[Unit], nodes: Sequence[Node]) -> dict[str, Unit]:
    """All units by name, in the order of their last nodes: those that only move values have names in parentheses."""
    order = {node: i for i, node in enumerate(nodes)}
    layers = {id(unit): name for name, unit in name_layers(units, nodes).items()}
    ordered = sorted(units, key=lambda u: order[u.output])
    return {layers.get(id(unit), f"({unit.output.name})"): unit for unit in ordered}


def _name(node: Node) -> str:
    path = module_path(node)
    stack: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    kind = str(list(stack.values())[-1][1]) if stack else ""
    # A module of torch's own computes one operator; what the user's own module calls needs the operator's name.
    if path and "torch.nn.modules." in kind and "container" not in kind:
        return path
    return ".".join(part for part in (path, operator_name(node)) if part)


_DTYPES: Mapping[Precision, str] = {"bf16": "bfloat16", "fp16": "float16"}


def rounded_layers(nodes: Iterable[Node], config: CompileConfig) -> Mapping[str, str]:
    """The float convolutions and linear layers that are not float32 throughout: precisions by the nodes' names.

    A name in ``layer_precision`` comes before the plan.
    """
    plan = None if config.plan is None else Plan.load(config.plan)
    result: dict[str, str] = {}
    for node in nodes:
        if node.target not in (aten.conv2d.default, aten.linear.default):
            continue
        chosen = precision(node, config)
        if plan is not None and chosen == "int8":
            chosen = plan.precision(str(node.meta.get(LAYER, "")))
        if config.weights_only and node.target is aten.linear.default and not _has_integers(node):
            result[node.name] = "int8_weights"
        elif chosen in _DTYPES:
            result[node.name] = _DTYPES[chosen]
    return result


def _has_integers(node: Node) -> bool:
    """Whether a layer's weights come out of a dequantize node: it becomes an integer operator."""
    source = node.args[1]
    return isinstance(source, Node) and "dequantize" in str(source.target)
