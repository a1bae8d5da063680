"""Names of nodes as the user knows them, and the nodes that the user keeps in float."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch.fx import Node

from qcompiler.config import CompileConfig, Precision
from qcompiler.errors import QuantizationError
from qcompiler.quantization.operator_classes import (
    MATMUL_CLASSES,
    ORIGIN,
    Refusal,
    classify,
    operator_name,
)

_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')

_INSIDE_TORCH = re.compile(r"[/\\\\]torch[/\\\\](nn|_\w+)[/\\\\]")


@dataclass(frozen=True)
class FloatOperator:
    """An operator that stays in float.

    Attributes:
        operator: name of the operator, such as ``softmax``.
        place: path of the module that calls it, and file and line if the model carries them.
        reason: why it is not computed in integers.
    """

    operator: str
    place: str
    reason: str


def module_path(node: Node) -> str:
    """Path of the innermost module that a node was traced in, such as ``layer1.0.conv1``; may be empty."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return str(entries[-1][0]) if entries else ""


def place(node: Node) -> str:
    """Where a node comes from: module path, then ``file:line`` of the user's call if it is known."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    # The innermost frame outside of torch is the user's own line.
    own = [f for f in frames if not _INSIDE_TORCH.search(f[0])]
    source = "{}:{}".format(*(own or frames)[-1]) if frames else ""
    parts = [part for part in (module_path(node), source) if part]
    return ", ".join(parts) or f"node {node.name}"


def _names(node: Node) -> set[str]:
    """Every name of ``keep_float`` that would match a node: operator, class, module and enclosing modules."""
    kind = classify(node)
    names = {operator_name(node)}
    if not isinstance(kind, Refusal) and ORIGIN not in node.meta:
        names.add(kind)
    path = module_path(node).split(".")
    names.update(".".join(path[:i]) for i in range(1, len(path) + 1))
    return names - {""}


def kept_float(nodes: Iterable[Node], config: CompileConfig) -> Mapping[Node, str]:
    """The nodes that the configuration leaves in float, with the reason.

    Raises:
        QuantizationError: a name in ``keep_float`` or ``layer_precision`` matches nothing.
    """
    nodes = list(nodes)
    reasons: dict[Node, str] = {}
    _check_known("layer_precision", config.layer_precision, nodes)
    for node in nodes:
        chosen = precision(node, config)
        if chosen != "int8":
            reasons[node] = f"precision {chosen}"
    matmuls = [n for n in nodes if classify(n) in MATMUL_CLASSES and ORIGIN not in n.meta]
    if matmuls and config.skip_first:
        reasons[matmuls[0]] = "skip_first"
    if matmuls and config.skip_last:
        reasons[matmuls[-1]] = "skip_last"
    for node in nodes:
        if not _names(node).isdisjoint(config.keep_float):
            reasons[node] = "keep_float"
    _check_known("keep_float", config.keep_float, nodes)
    return reasons


def precision(node: Node, config: CompileConfig) -> Precision:
    """What the configuration says of a node."""
    names = _names(node) & config.layer_precision.keys()
    if not names:
        return config.precision
    # A name that is the beginning of its module's path is a module, the innermost the longest; others are operators.
    path = module_path(node)
    return config.layer_precision[max(names, key=lambda name: len(name) if path.startswith(name) else 0)]


def _check_known(option: str, names: Iterable[str], nodes: Iterable[Node]) -> None:
    known: set[str] = set().union(*(_names(node) for node in nodes))
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, sorted(known), n=5, cutoff=0.4) or sorted(known)[:5]
            raise QuantizationError(
                f"{option}: no operator or module of the model is called {name!r}; near: {', '.join(near)}"
            )
