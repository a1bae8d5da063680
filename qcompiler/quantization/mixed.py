"""A model with a precision for each of its layers, by PyTorch in float32: how much accuracy each layer costs.

What is simulated is the rounding of a layer's inputs, weights and result to their scales, or to a float of 16 bits; sums
stay in float32, where the compiled library sums integers exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch.fx import Node

from qcompiler.config import Precision
from qcompiler.quantization.layers import name_layers, name_sites
from qcompiler.quantization.network import network, users
from qcompiler.quantization.operator_classes import MATMUL_CLASSES, is_float32, tensor_inputs, value
from qcompiler.quantization.patterns import Unit
from qcompiler.quantization.quantizer import Calibrated
from qcompiler.quantization.selection import Selection, select
from qcompiler.quantization.simulation import Grid, Prepared, Values

Batch = tuple[torch.Tensor, ...]

CHUNK_ELEMENTS = 1 << 26
"""Activations that are kept at once, in elements: 256 MB in float32."""

_HALVES: Mapping[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True, eq=False)
class Assignment:
    """What a run computes in which precision; all else is in float32.

    Attributes:
        integer: the nodes of the units in integers.
        results: the nodes among them whose result is rounded to its scale.
        halves: the convolutions and linear layers in a float of 16 bits, with their precision.
        stored: the nodes whose result is written in bfloat16, because nothing reads it but as that.
    """

    integer: frozenset[Node]
    results: frozenset[Node]
    halves: Mapping[Node, Precision]
    stored: frozenset[Node]


class LayerSimulation(Prepared[Assignment]):
    """Runs a calibrated model with any precision for each of its layers.

    Args:
        calibrated: the model.
        multiplies_bfloat16: layers in bf16 round what they read to bfloat16, as where the target has an instruction that
            multiplies it; else a float of 16 bits is what weights are rounded to, and nothing else.

    Attributes:
        layers: the layers that can be computed in integers, by their names in plans, in order.
        network: the same layers, those that only move values, and the tensors between them.
    """

    def __init__(self, calibrated: Calibrated, multiplies_bfloat16: bool = False) -> None:
        super().__init__(calibrated.model)
        self._selection = calibrated.quantizer.selection
        self._multiplies_bfloat16 = multiplies_bfloat16
        self.layers: Mapping[str, Unit] = name_layers(self._selection.units, self.nodes)
        sites = name_sites(self._selection.units, self.nodes)
        self.network = network(list(sites.values()), list(sites))
        self._grids: dict[Node, Grid] = {}
        self._half_weights: dict[tuple[Node, Precision], torch.Tensor] = {}
        self._inputs = [n for n in self.nodes if n.op == "placeholder"]
        self._outputs = [n for n in tensor_inputs(self.output) if _is_float(n)]
        self._constants: Values = {n: self.constant(n) for n in self.nodes if n.op == "get_attr"}
        with torch.no_grad():
            for quantizer, observer in self.observers.items():
                (source,) = quantizer.all_input_nodes
                if self.is_constant(quantizer):
                    self._constants[quantizer] = self._constants[source]
                    self.quantized(quantizer, self._constants[source])  # once, and not for every chunk
                else:
                    self._grids[quantizer] = Grid.of(observer, 0)
        self._nodes = [
            n for n in self.nodes if n.op in ("call_function", "call_module") and n not in self._constants
        ]

    def assignment(self, precisions: Mapping[str, Precision]) -> Assignment:
        """What is computed how if the named layers have these precisions, and all others fp32.

        Which of the layers in int8 take part in integer arithmetic is what the quantizer decides for such a plan.

        Args:
            precisions: by name of the layer; bf16 and fp16 for convolutions and linear layers alone.
        """
        integer = {id(self.layers[name]) for name, precision in precisions.items() if precision == "int8"}
        planned = {id(unit) for unit in self.layers.values()}
        units = [u for u in self._selection.units if id(u) not in planned or id(u) in integer]
        return self._assignment(select(units), precisions)

    def _assignment(self, selection: Selection, precisions: Mapping[str, Precision]) -> Assignment:
        halves: dict[Node, Precision] = {}
        reading: set[Node] = set()
        for name, precision in precisions.items():
            unit = self.layers[name]
            if precision in _HALVES:
                assert unit.kind in MATMUL_CLASSES, (name, precision)
                halves[unit.nodes[0]] = precision
                if self._rounds_operands(precision):
                    reading |= set(unit.nodes)
        integer = frozenset(n for u in selection.units for n in u.nodes)
        stored = [
            unit.output
            for unit in self.layers.values()
            if unit.kind in MATMUL_CLASSES
            and unit.output not in integer
            and all(user in reading for user in users(unit.output))
        ]
        results = frozenset(u.output for u in selection.units) - selection.float_output
        return Assignment(integer, results, halves, frozenset(stored))

    def _rounds_operands(self, precision: Precision) -> bool:
        return precision == "bf16" and self._multiplies_bfloat16

    def run(self, precisions: Mapping[str, Precision], batches: Sequence[Batch]) -> list[torch.Tensor]:
        """The outputs with the named layers in these precisions, and all others in fp32.

        Args:
            precisions: as of :meth:`assignment`.
            batches: a tensor a model input each, all of the same shapes.

        Returns:
            Each float32 [len(batches), *shape of the output].
        """
        assignment = self.assignment(precisions)
        parts = []
        for inputs in self._chunks(batches):
            values: Values = dict(zip(self._inputs, inputs, strict=True))
            parts.append([t.clone() for t in self._compute(self._nodes, values, assignment, self._outputs)])
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    def alone(
        self, batches: Sequence[Batch], precisions: Sequence[Precision] = ("int8",)
    ) -> Iterator[tuple[str, Precision, int, list[torch.Tensor], list[torch.Tensor]]]:
        """For each layer, precision and chunk of ``batches``: the outputs with it alone so, and the float ones.

        What a layer does not change is computed once for all of them.

        Args:
            batches: as of :meth:`run`.
            precisions: to try, without fp32; of those of 16 bits, each for convolutions and linear layers.

        Yields:
            The layer's name, its precision, the position of the chunk's first batch, and the two lists of outputs, each
            float32 [batches of the chunk, *shape of the output].
        """
        nothing = self._assignment(Selection((), frozenset()), {})
        after = {name: self.downstream(unit.nodes) for name, unit in self.layers.items()}
        first = 0
        for inputs in self._chunks(batches):
            values: Values = dict(zip(self._inputs, inputs, strict=True))
            computed = self._compute(self._nodes, values, nothing, self._nodes)
            values.update(zip(self._nodes, computed, strict=True))
            exact = [values[n] for n in self._outputs]
            for name, unit in self.layers.items():
                affected = [n for n in after[name] if n is not self.output]
                reached = [n for n in self._outputs if n in set(affected)]
                for precision in precisions:
                    if precision == "int8":
                        chosen = Selection((unit,), self._selection.float_output & {unit.output})
                        state = self._assignment(chosen, {})
                    elif unit.kind in MATMUL_CLASSES:
                        state = self._assignment(Selection((), frozenset()), {name: precision})
                    else:
                        continue
                    found = self._compute(affected, values, state, reached)
                    changed = dict(zip(reached, found, strict=True))
                    outputs = [changed[n] if n in changed else values[n] for n in self._outputs]
                    yield name, precision, first, outputs, exact
            first += len(inputs[0])

    def _chunks(self, batches: Sequence[Batch]) -> Iterator[list[torch.Tensor]]:
        """The inputs of several batches stacked, as many as the activations of fit in memory."""
        tensors = [value(n) for n in self._nodes if n.op == "call_function"]
        elements = sum(prod(t.shape) for t in tensors if t is not None)
        count = max(1, CHUNK_ELEMENTS // max(1, elements))
        for first in range(0, len(batches), count):
            yield [torch.stack(column) for column in zip(*batches[first : first + count], strict=True)]

    def _compute(
        self, nodes: Sequence[Node], known: Values, state: Assignment, wanted: Sequence[Node]
    ) -> list[torch.Tensor]:
        """The values of ``wanted`` for stacked batches, by computing ``nodes``; what else they read is in ``known``."""
        own = set(nodes)
        read = [
            n
            for n in dict.fromkeys(a for n in nodes for a in n.all_input_nodes)
            if n in known and n not in own
        ]

        def one(*arguments: torch.Tensor) -> tuple[Any, ...]:
            values: Values = {**self._constants, **dict(zip(read, arguments, strict=True))}
            self.update(values, nodes, state)
            return tuple(values[n] for n in wanted)

        with torch.no_grad():
            if not wanted:
                return []
            return list(torch.func.vmap(one)(*(known[n] for n in read)))

    def compute(self, node: Node, values: Mapping[Node, Any], state: Assignment) -> Any:
        result = super().compute(node, values, state)
        if node in state.results:
            quantizer = next((u for u in node.users if u in self._grids), None)
            return result if quantizer is None else self._grids[quantizer](result)
        return _rounded(result, "bf16") if node in state.stored else result

    def operands(self, reader: Node, values: Mapping[Node, Any], state: Assignment) -> Callable[[Node], Any]:
        """What quantizers let pass is rounded where it is read: one tensor may be read in several precisions."""
        if reader in state.halves:
            return lambda source: self._half(reader, source, values, state.halves[reader])
        if reader not in state.integer or reader in self.observers:
            return values.__getitem__

        def rounded(source: Node) -> Any:
            if source in self._grids:
                return self._grids[source](values[source])
            return self.quantized(source, values[source]) if source in self.observers else values[source]

        return rounded

    def _half(self, reader: Node, source: Node, values: Mapping[Node, Any], precision: Precision) -> Any:
        if source is reader.args[0]:
            return _rounded(values[source], precision) if self._rounds_operands(precision) else values[source]
        if source is not reader.args[1]:
            return values[source]
        if (source, precision) not in self._half_weights:
            self._half_weights[source, precision] = _rounded(values[source], precision)
        return self._half_weights[source, precision]


def _rounded(tensor: torch.Tensor, precision: Precision) -> torch.Tensor:
    return tensor.to(_HALVES[precision]).float()


def _is_float(node: Node) -> bool:
    source = node.all_input_nodes[0] if node.op == "call_module" else node
    return value(source) is not None and is_float32(source)
