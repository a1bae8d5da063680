"""A walk through a graph, layer by layer, with the float and the quantized values of all calibration samples at hand.

Each operator is computed once for each sample in float and once quantized, whatever is changed on the way: a layer that
was adapted gives the layers behind it their input. Values are dropped after their last use, and as many samples are
taken as fit into ``MEMORY`` bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from qcompiler.quantization.batch_norms import attribute
from qcompiler.quantization.operator_classes import aten
from qcompiler.quantization.optimize.effects import Batch
from qcompiler.quantization.simulation import Simulation, Values, spread

MEMORY = 2**30
"""Bytes that the values of all samples may take at once."""

SAMPLES = 256
"""Samples that are walked with, at most: a channel's mean and a layer's second moments are known well by then."""

LAYERS = frozenset({aten.conv2d.default, aten.linear.default})


@dataclass(frozen=True)
class Layer:
    """A quantized convolution or linear layer in a prepared graph.

    Attributes:
        node: the layer.
        quantizer: its weight's quantizer.
        weight: the ``get_attr`` node of its weight.
        source: what its input comes from.
    """

    node: Node
    quantizer: Node
    weight: Node
    source: Node

    @property
    def bias(self) -> Node | None:
        bias = self.node.args[2] if len(self.node.args) > 2 else None
        return bias if isinstance(bias, Node) else None


def layers_of(simulation: Simulation) -> list[Layer]:
    """The quantized layers in order, whose weight and bias belong to them alone."""
    readers: dict[str, int] = {}
    for node in simulation.nodes:
        if node.op == "get_attr":
            readers[str(node.target)] = readers.get(str(node.target), 0) + len(node.users)
    found = []
    for node in simulation.nodes:
        if node.target not in LAYERS:
            continue
        source, quantizer = node.args[:2]
        assert isinstance(source, Node), node
        if not isinstance(quantizer, Node) or quantizer not in simulation.observers:
            continue
        (weight,) = quantizer.all_input_nodes
        layer = Layer(node, quantizer, weight, source)
        own = [n for n in (weight, layer.bias) if n is not None]
        if len(quantizer.users) == 1 and all(readers[str(n.target)] == 1 for n in own):
            found.append(layer)
    return found


@dataclass(frozen=True)
class Samples:
    """A layer's input and output for all samples, a tensor a batch.

    Attributes:
        inputs: quantized, as the layers before it give them.
        expected: the float model's outputs.
    """

    inputs: list[torch.Tensor]
    expected: list[torch.Tensor]


def walk(
    simulation: Simulation,
    batches: Sequence[Batch],
    layers: Iterable[Layer],
    adapt: Callable[[Layer, Samples], None],
) -> None:
    """Call ``adapt``, which may change the layer's weight and bias, for each of ``layers`` in order.

    Args:
        simulation: a graph with calibrated observers.
        batches: calibration inputs.
        layers: of the graph.
        adapt: takes a layer and its samples.
    """
    by_node = {layer.node: layer for layer in layers}
    chosen = _fitting(simulation, batches)
    exact = [_inputs(simulation, batch) for batch in chosen]
    rounded = [dict(values) for values in exact]
    dying = _last_uses(simulation)
    # The float model is the one before any change: constants are read once and copied.
    constants = {n: simulation.compute(n, {}, ()).clone() for n in simulation.nodes if n.op == "get_attr"}
    active = simulation.quantizers
    for node in simulation.nodes:
        if node.op == "placeholder":
            continue
        for values in exact:
            values[node] = constants[node] if node in constants else simulation.compute(node, values, ())
        layer = by_node.get(node)
        if layer is not None:
            inputs = [values[layer.source] for values in rounded]
            adapt(layer, Samples(inputs, [values[node] for values in exact]))
            simulation.forget(layer.quantizer)
        for values in rounded:
            if layer is not None:
                simulation.update(values, [layer.weight, *([layer.bias] if layer.bias else [])], active)
                simulation.update(values, [layer.quantizer], active)
            values[node] = simulation.compute(node, values, active)
        for values in (*exact, *rounded):
            for dead in dying.get(node, ()):
                values.pop(dead, None)


def _inputs(simulation: Simulation, batch: Batch) -> Values:
    inputs = iter(batch)
    return {n: next(inputs) for n in simulation.nodes if n.op == "placeholder"}


def _last_uses(simulation: Simulation) -> dict[Node, list[Node]]:
    """For each node those whose values nobody needs after it."""
    last: dict[Node, Node] = {}
    for node in simulation.nodes:
        last[node] = node
        for source in node.all_input_nodes:
            last[source] = node
    dying: dict[Node, list[Node]] = {}
    for source, node in last.items():
        dying.setdefault(node, []).append(source)
    return dying


def _fitting(simulation: Simulation, batches: Sequence[Batch]) -> list[Batch]:
    """As many batches as fit into the memory, evenly spread."""
    chosen = spread(batches, SAMPLES)
    values, alive, peak = simulation.run(chosen[0], ()), 0, 0
    dying = _last_uses(simulation)
    for node in simulation.nodes:
        alive += 0 if node.op == "get_attr" else _bytes(values[node])
        peak = max(peak, alive)
        alive -= sum(_bytes(values[n]) for n in dying.get(node, ()) if n.op != "get_attr")
    count = max(1, min(len(chosen), MEMORY // max(2 * peak, 1)))
    return [chosen[k * len(chosen) // count] for k in range(count)]


def _bytes(value: object) -> int:
    leaves = torch.utils._pytree.tree_leaves(value)
    return sum(v.nbytes for v in leaves if isinstance(v, torch.Tensor))


def add_to_bias(model: GraphModule, layer: Layer, shift: torch.Tensor) -> None:
    """Add ``shift``, one value an output channel, to a layer's bias; a layer without one gets one."""
    if layer.bias is not None:
        bias = attribute(model, str(layer.bias.target))
        bias.copy_(bias.double() + shift)
        return
    name = f"{layer.node.name}_bias_correction"
    model.register_parameter(name, torch.nn.Parameter(shift.float(), requires_grad=False))
    with model.graph.inserting_before(layer.node):
        node = model.graph.get_attr(name)
    layer.node.args = (*layer.node.args[:2], node, *layer.node.args[3:])
    model.recompile()
