"""A model as a search for a plan sees it: layers with a precision each, and tensors between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from qcompiler.quantization.operator_classes import MATMUL_CLASSES, SHARING_CLASSES
from qcompiler.quantization.patterns import Unit


@dataclass(frozen=True)
class Site:
    """Nodes that one kernel computes.

    Attributes:
        name: the layer's name in plans; for what only moves values, which has no precision of its own, a name that no
            plan knows.
        kind: class of the kernel.
        moves: it only moves values: it is in integers where its input is, or a reader of its result.
        begins: it may be in integers between float tensors; else it needs an input in integers.
        tensors: the tensors that it reads, by their index in :attr:`Network.tensors`.
    """

    name: str
    kind: str
    moves: bool
    begins: bool
    tensors: tuple[int, ...]


@dataclass(frozen=True)
class Tensor:
    """A tensor that a site reads.

    Attributes:
        name: of its node in the graph.
        producer: index of the site that computes it; None for an input, or for the result of what has no integer form.
        readers: indices of the sites that read it.
        read_in_float: something that is no site reads it, or the model returns it.
    """

    name: str
    producer: int | None
    readers: tuple[int, ...]
    read_in_float: bool


@dataclass(frozen=True)
class Network:
    """Sites in the order that they run in, and the tensors between them."""

    sites: tuple[Site, ...]
    tensors: tuple[Tensor, ...]

    def origins(self, site: int) -> set[int]:
        """The sites that compute what a site reads, seen through those that only move values."""
        found: set[int] = set()
        for tensor in self.sites[site].tensors:
            producer = self.tensors[tensor].producer
            if producer is not None:
                found |= self.origins(producer) if self.sites[producer].moves else {producer}
        return found

    def consumers(self, site: int) -> set[int]:
        """The sites that compute with a site's result, seen through those that only move values."""
        found: set[int] = set()
        for tensor in self.tensors:
            if tensor.producer == site:
                for reader in tensor.readers:
                    found |= self.consumers(reader) if self.sites[reader].moves else {reader}
        return found


def network(units: Sequence[Unit], names: Sequence[str]) -> Network:
    """The network of a model's units.

    Args:
        units: in topological order of their last nodes.
        names: a name each.
    """
    by_output = {unit.output: k for k, unit in enumerate(units)}
    inside = {node: k for k, unit in enumerate(units) for node in unit.nodes}
    read: dict[Node, list[int]] = {}
    for k, unit in enumerate(units):
        for source, _ in unit.inputs:
            readers = read.setdefault(source, [])
            if k not in readers:
                readers.append(k)
    for unit in units:  # what the model returns, or only float operators read
        read.setdefault(unit.output, [])
    index = {node: k for k, node in enumerate(read)}
    tensors = tuple(
        Tensor(
            node.name, by_output.get(node), tuple(readers), any(user not in inside for user in users(node))
        )
        for node, readers in read.items()
    )
    sites = tuple(
        Site(
            name,
            unit.kind,
            unit.kind in SHARING_CLASSES,
            unit.kind in MATMUL_CLASSES or unit.kind in SHARING_CLASSES or unit.kind == "avg_pool2d",
            tuple(index[source] for source in dict.fromkeys(source for source, _ in unit.inputs)),
        )
        for unit, name in zip(units, names, strict=True)
    )
    return Network(sites, tensors)


def users(node: Node) -> list[Node]:
    """What reads a node, seen through observers."""
    return [u for user in node.users for u in (users(user) if user.op == "call_module" else [user])]
