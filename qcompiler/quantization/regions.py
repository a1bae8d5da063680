"""Connected subgraphs of elementwise operators that are one function of one tensor.

A hard-swish may be written ``x * relu6(x + 3) / 6``. Each element of the result depends on one element of
``x`` alone, so the whole is one table of 256 entries; quantizing what lies between would only add rounding
errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch.fx import Node

from qcompiler.quantization.operator_classes import (
    is_binary_elementwise,
    is_elementwise,
    shape_of,
    tensor_inputs,
)


@dataclass(frozen=True)
class Region:
    """One function of one tensor.

    Attributes:
        root: the tensor that the region is computed from; not part of it.
        nodes: the region's nodes in topological order; the last one is the output, and the only one that is
            used outside.
    """

    root: Node
    nodes: tuple[Node, ...]


def _roots(candidates: Sequence[Node], cuts: set[Node]) -> dict[Node, Node]:
    """The tensor that each candidate is a function of; a cut node is one, seen from its users."""
    roots: dict[Node, Node] = {}
    for node in candidates:
        sources = {arg if arg in cuts else roots.get(arg, arg) for arg in tensor_inputs(node)}
        if len(sources) != 1:
            continue
        (root,) = sources
        if shape_of(root) == shape_of(node):
            roots[node] = root
    return roots


def _components(roots: dict[Node, Node], cuts: set[Node]) -> list[list[Node]]:
    """Nodes of one root that are connected among themselves, in topological order."""
    component: dict[Node, list[Node]] = {}
    for node, root in roots.items():
        merged: list[Node] = []
        for arg in tensor_inputs(node):
            if arg in roots and arg not in cuts and roots[arg] is root and component[arg] is not merged:
                other = component[arg]
                merged += other
                for member in other:
                    component[member] = merged
        merged.append(node)
        component[node] = merged
    return list({id(c): c for c in component.values()}.values())


def find_regions(nodes: Iterable[Node]) -> list[Region]:
    """Largest regions with a single output among nodes in topological order.

    A node that is needed outside of its region, and is not its only such node, ends a region of its own: the
    tensor exists anyway.
    """
    candidates = [n for n in nodes if is_elementwise(n) or is_binary_elementwise(n)]
    position = {node: i for i, node in enumerate(candidates)}
    cuts: set[Node] = set()
    while True:
        roots = _roots(candidates, cuts)
        found, new_cuts = [], set()
        for members in _components(roots, cuts):
            members.sort(key=position.__getitem__)
            inside = set(members)
            outputs = [
                n for n in members if n in cuts or not n.users or any(u not in inside for u in n.users)
            ]
            if len(outputs) > 1:
                # Of two outputs that share an inner node, cutting themselves is not enough.
                new_cuts.add(next(n for n in (*outputs, *members) if n not in cuts))
            else:
                found.append(Region(roots[members[0]], tuple(members)))
        if not new_cuts:
            return found
        cuts |= new_cuts
