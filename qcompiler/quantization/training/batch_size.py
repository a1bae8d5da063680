"""Makes a graph that was exported at one batch size take any.

The same model exported at two batch sizes gives the same nodes, and every number in them that follows the batch size
differs. Such a number becomes a computation of the input's extent. Nothing is guessed from a number's value.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qcompiler.quantization.operator_classes import aten, shape_of


class FixedBatchError(Exception):
    """A graph cannot take other batch sizes; the message says why."""


@dataclass(frozen=True)
class BatchUse:
    """A number in a node's arguments that is a multiple of the batch size.

    Attributes:
        node: the node.
        path: where in ``(args, kwargs)`` the number is, index by index.
        factor: the number divided by the batch size.
    """

    node: Node
    path: tuple[Any, ...]
    factor: int


def batch_uses(graph: GraphModule, other: GraphModule) -> list[BatchUse]:
    """Where ``graph`` depends on its batch size.

    Args:
        graph: a graph of one model.
        other: the graph of the same model, made in the same way at another batch size.

    Raises:
        FixedBatchError: the graphs differ in more than such numbers, or the inputs have no common batch size.
    """
    size, other_size = (_batch(g) for g in (graph, other))
    pairs = list(zip(graph.graph.nodes, other.graph.nodes, strict=False))
    position = {a: k for k, (a, _) in enumerate(pairs)}
    other_position = {b: k for k, (_, b) in enumerate(pairs)}
    if len(graph.graph.nodes) != len(other.graph.nodes):
        raise FixedBatchError("it computes something else at another batch size")
    uses = []
    for a, b in pairs:
        # Names of attributes are the same: both graphs are made in the same way.
        if (a.op, a.target) != (b.op, b.target):
            raise FixedBatchError(f"it computes {b.target} in the place of {a.target} at another batch size")
        for path, value, counterpart in _leaves((a.args, a.kwargs), (b.args, b.kwargs), ()):
            if isinstance(value, Node):
                same = isinstance(counterpart, Node) and position[value] == other_position[counterpart]
            else:
                same = type(value) is type(counterpart) and value == counterpart
            if same:
                continue
            whole = isinstance(value, int) and isinstance(counterpart, int)
            if not whole or value % size or value * other_size != counterpart * size:
                raise FixedBatchError(f"an argument of {a.target} depends on the batch size: {value}")
            uses.append(BatchUse(a, path, value // size))
    return uses


def _batch(graph: GraphModule) -> int:
    shapes = [shape_of(n) for n in graph.graph.nodes if n.op == "placeholder"]
    sizes = {shape[0] if shape else None for shape in shapes}
    size = sizes.pop() if len(sizes) == 1 else None
    if not size:
        raise FixedBatchError("its inputs do not have the same first extent")
    return size


def _leaves(a: Any, b: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Leaves of two nested arguments with their paths; a difference of structure is a leaf."""
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)) and len(a) == len(b):
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from _leaves(x, y, (*path, k))
    elif isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        for key in a:
            yield from _leaves(a[key], b[key], (*path, key))
    else:
        yield path, a, b


def free_batch(graph: GraphModule, uses: list[BatchUse]) -> None:
    """Compute what depends on the batch size from the first input's extent, in place."""
    if not uses:
        return
    inputs = [n for n in graph.graph.nodes if n.op == "placeholder"]
    with graph.graph.inserting_after(inputs[-1]):
        size = graph.graph.call_function(aten.sym_size.int, (inputs[0], 0))
    for use in uses:
        value = size
        if use.factor != 1:
            with graph.graph.inserting_before(use.node):
                value = graph.graph.call_function(operator.mul, (size, use.factor))
        args, kwargs = _replaced((use.node.args, use.node.kwargs), use.path, value)
        use.node.args, use.node.kwargs = args, kwargs
    graph.recompile()


def _replaced(value: Any, path: tuple[Any, ...], new: Node) -> Any:
    if not path:
        return new
    if isinstance(value, Mapping):
        return {k: _replaced(v, path[1:], new) if k == path[0] else v for k, v in value.items()}
    return type(value)(_replaced(v, path[1:], new) if k == path[0] else v for k, v in enumerate(value))


def batch_of(inputs: tuple[torch.Tensor, ...]) -> int | None:
    """The common first extent of some tensors, or None."""
    sizes = {x.shape[0] if x.ndim else None for x in inputs}
    return sizes.pop() if len(sizes) == 1 else None
