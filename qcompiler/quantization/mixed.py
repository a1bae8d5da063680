"""A model with some of its layers computed as in integers, by PyTorch in float32: how much accuracy each costs.

What is simulated is the rounding of a layer's inputs, weights and result to their scales; sums stay in float32, where
the compiled library sums integers exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Node, map_arg

from qcompiler.quantization.batch_norms import attribute
from qcompiler.quantization.layers import name_layers, name_sites
from qcompiler.quantization.network import network
from qcompiler.quantization.operator_classes import aten, is_float32, tensor_inputs, value
from qcompiler.quantization.patterns import Unit
from qcompiler.quantization.quantizer import Calibrated
from qcompiler.quantization.selection import Selection, select

Batch = tuple[torch.Tensor, ...]
Values = dict[Node, Any]

CHUNK_ELEMENTS = 1 << 26
"""Activations that are kept at once, in elements: 256 MB in float32."""

_AS_RESHAPE: dict[Any, Any] = {aten.view.default: aten.reshape.default}
"""Under vmap a tensor's batch may stand where it keeps a view from being one."""


@dataclass(frozen=True, eq=False)
class _Grid:
    """The numbers that a tensor is rounded to: ``scale * (q - zero_point)`` for q in [low, high]."""

    scale: torch.Tensor
    zero_point: torch.Tensor
    low: int
    high: int

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        q = torch.round(value / self.scale) + self.zero_point
        return (q.clamp(self.low, self.high) - self.zero_point) * self.scale


class Simulation:
    """Runs a calibrated model with any set of its layers in integers.

    Attributes:
        layers: the layers that can be computed in integers, by their names in plans, in order.
        network: the same layers, those that only move values, and the tensors between them.
    """

    def __init__(self, calibrated: Calibrated) -> None:
        model, quantizer = calibrated.model, calibrated.quantizer
        self._graph = model.graph
        self._selection = quantizer.selection
        nodes = list(model.graph.nodes)
        self.layers: Mapping[str, Unit] = name_layers(self._selection.units, nodes)
        sites = name_sites(self._selection.units, nodes)
        self.network = network(list(sites.values()), list(sites))
        self._modules = dict(model.named_modules(remove_duplicate=False))
        self._grids: dict[Node, _Grid] = {}
        self._constants: Values = {}
        self._rounded: Values = {}
        with torch.no_grad():
            for node in nodes:
                if node.op == "get_attr":
                    self._constants[node] = attribute(model, str(node.target)).detach()
                elif node.op == "call_module":
                    self._observe(node)
        self._inputs = [n for n in nodes if n.op == "placeholder"]
        self._nodes = [
            n for n in nodes if n.op in ("call_function", "call_module") and n not in self._constants
        ]
        (output,) = [n for n in nodes if n.op == "output"]
        self._outputs = [n for n in tensor_inputs(output) if _is_float(n)]

    def _observe(self, node: Node) -> None:
        """Takes note of an observer's grid; what it observes of the model's constants is rounded at once."""
        observer, (source,) = self._modules[str(node.target)], node.all_input_nodes
        scale, zero_point = observer.calculate_qparams()
        if source in self._constants and hasattr(observer, "ch_axis"):
            rank = self._constants[source].dim()
            shape = [-1 if axis == observer.ch_axis else 1 for axis in range(rank)]
            scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
        grid = _Grid(scale.float(), zero_point.float(), observer.quant_min, observer.quant_max)
        self._grids[node] = grid
        if source in self._constants:
            self._constants[node] = self._constants[source]
            self._rounded[node] = grid(self._constants[source])

    def chosen(self, names: Iterable[str]) -> Selection:
        """What is computed in integers if the named layers may be: as the quantizer decides for such a plan."""
        wanted = {id(self.layers[name]) for name in names}
        planned = {id(unit) for unit in self.layers.values()}
        return select([u for u in self._selection.units if id(u) not in planned or id(u) in wanted])

    def run(self, names: Iterable[str], batches: Sequence[Batch]) -> list[torch.Tensor]:
        """The outputs with the named layers in integers, each float32 [len(batches), *shape of the output]."""
        selection = self.chosen(names)
        parts = []
        for inputs in self._chunks(batches):
            values: Values = dict(zip(self._inputs, inputs, strict=True))
            parts.append([t.clone() for t in self._compute(self._nodes, values, selection, self._outputs)])
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    def alone(
        self, batches: Sequence[Batch]
    ) -> Iterator[tuple[str, int, list[torch.Tensor], list[torch.Tensor]]]:
        """For each layer and chunk of ``batches``: the outputs with it alone in integers, and the float ones.

        What a layer does not change is computed once for all of them.

        Yields:
            The layer's name, the position of the chunk's first batch, and the two lists of outputs, each float32
            [batches of the chunk, *shape of the output].
        """
        nothing = Selection((), frozenset())
        after = {name: self._affected(unit) for name, unit in self.layers.items()}
        first = 0
        for inputs in self._chunks(batches):
            values: Values = dict(zip(self._inputs, inputs, strict=True))
            computed = self._compute(self._nodes, values, nothing, self._nodes)
            values.update(zip(self._nodes, computed, strict=True))
            exact = [values[n] for n in self._outputs]
            for name, unit in self.layers.items():
                selection = Selection((unit,), self._selection.float_output & {unit.output})
                affected = after[name]
                reached = [n for n in self._outputs if n in affected]
                found = self._compute([n for n in self._nodes if n in affected], values, selection, reached)
                changed = dict(zip(reached, found, strict=True))
                yield name, first, [changed[n] if n in changed else values[n] for n in self._outputs], exact
            first += len(inputs[0])

    def _affected(self, unit: Unit) -> set[Node]:
        """The nodes of a unit and all that depend on them."""
        found = set(unit.nodes)
        for node in self._nodes:
            if any(n in found for n in node.all_input_nodes):
                found.add(node)
        return found

    def _chunks(self, batches: Sequence[Batch]) -> Iterator[list[torch.Tensor]]:
        """The inputs of several batches stacked, as many as the activations of fit in memory."""
        tensors = [value(n) for n in self._nodes if n.op == "call_function"]
        elements = sum(prod(t.shape) for t in tensors if t is not None)
        count = max(1, CHUNK_ELEMENTS // max(1, elements))
        for first in range(0, len(batches), count):
            yield [torch.stack(column) for column in zip(*batches[first : first + count], strict=True)]

    def _compute(
        self, nodes: Sequence[Node], known: Values, selection: Selection, wanted: Sequence[Node]
    ) -> list[torch.Tensor]:
        """The values of ``wanted`` for stacked batches, by computing ``nodes``; what else they read is in ``known``."""
        own = set(nodes)
        read = [
            n
            for n in dict.fromkeys(a for n in nodes for a in n.all_input_nodes)
            if n in known and n not in own
        ]
        integer = {n for u in selection.units for n in u.nodes}
        results = {u.output for u in selection.units} - selection.float_output

        def one(*arguments: torch.Tensor) -> tuple[Any, ...]:
            values: Values = {**self._constants, **dict(zip(read, arguments, strict=True))}
            for node in nodes:
                values[node] = self._node(node, values, integer, results)
            return tuple(values[n] for n in wanted)

        with torch.no_grad():
            if not wanted:
                return []
            return list(torch.func.vmap(one)(*(known[n] for n in read)))

    def _node(self, node: Node, values: Values, integer: set[Node], results: set[Node]) -> Any:
        if node.op == "call_module":  # an observer
            return values[node.all_input_nodes[0]]

        def argument(source: Node) -> Any:
            if node in integer and source in self._grids:
                return (
                    self._rounded[source] if source in self._rounded else self._grids[source](values[source])
                )
            return values[source]

        args, kwargs = map_arg(node.args, argument), map_arg(node.kwargs, argument)
        assert callable(node.target), node
        result = _AS_RESHAPE.get(node.target, node.target)(*args, **kwargs)
        observers = [u for u in node.users if u in self._grids] if node in results else []
        return self._grids[observers[0]](result) if observers else result


def _is_float(node: Node) -> bool:
    source = node.all_input_nodes[0] if node.op == "call_module" else node
    return value(source) is not None and is_float32(source)
