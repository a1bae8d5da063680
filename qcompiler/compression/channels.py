"""Which channels of a network's tensors belong together, found in its exported graph.

Every channel that a layer computes gets a label. Labels travel with the tensor: an addition makes two labels one, a
concatenation puts them one behind the other, a flattening repeats each. Where a tensor of parameters has a dimension
along labelled channels, that dimension gets the labels. To remove a label is then to remove its positions from every
tensor of parameters, and the network stays whole. Where the graph does something else with channels, their labels are
fixed, with the reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram
from torch.fx import Node

aten = torch.ops.aten

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Channels:
    """A tensor's channels.

    Attributes:
        axis: the dimension that they lie along.
        labels: a label for each position.
    """

    axis: int
    labels: Labels


@dataclass(frozen=True)
class MatmulLayer:
    """What is needed to count a layer's multiplications.

    Attributes:
        weight: name of its weight.
        positions: results a channel, times the kernel's positions, for one call.
        inputs: labels of its input channels; None if they are not labelled.
        input_count: how many there are in a group.
        outputs: labels of its output channels.
        depthwise: whether each output channel reads one input channel.
    """

    weight: str
    positions: int
    inputs: Labels | None
    input_count: int
    outputs: Labels
    depthwise: bool


class ChannelGraph:
    """The labels of a program.

    Args:
        program: a float program, exported for inference.

    Attributes:
        dimensions: for each parameter and buffer, labels by dimension.
        layers: convolutions and linear layers in the program's order.
        fixed: why labels cannot be removed, by representative label.
    """

    def __init__(self, program: ExportedProgram) -> None:
        decomposed = program.run_decompositions({})
        signature = decomposed.graph_signature
        self.names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.dimensions: dict[str, dict[int, Labels]] = {}
        self.layers: list[MatmulLayer] = []
        self.fixed: dict[int, str] = {}
        self._parents: list[int] = []
        self._values: dict[Node, Channels | None] = {}
        self._read: set[str] = set()
        for node in decomposed.graph.nodes:
            if node.op == "call_function":
                self._values[node] = self._follow(node)
        (output,) = [n for n in decomposed.graph.nodes if n.op == "output"]
        for node in output.all_input_nodes:
            self._fix(node, "they are the model's output")
        for name in self._read:
            for labels in self.dimensions.get(name, {}).values():
                self._fix_labels(labels, "their parameters are used in another way as well")

    def root(self, labels: Labels) -> Labels:
        """The representative of each label."""
        return np.array([self._root(int(label)) for label in labels], dtype=np.int64)

    def reason(self, label: int) -> str | None:
        """Why a label cannot be removed, or None."""
        return self.fixed.get(self._root(label))

    def _root(self, label: int) -> int:
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def _new(self, count: int) -> Labels:
        first = len(self._parents)
        self._parents += range(first, first + count)
        return np.arange(first, first + count)

    def _unite(self, a: Labels, b: Labels) -> None:
        for x, y in zip(a, b, strict=True):
            first, second = sorted((self._root(int(x)), self._root(int(y))))
            if first != second:
                self._parents[second] = first
                if second in self.fixed:
                    self.fixed.setdefault(first, self.fixed.pop(second))

    def _fix_labels(self, labels: Labels, reason: str) -> None:
        for label in labels:
            self.fixed.setdefault(self._root(int(label)), reason)

    def _fix(self, node: Node, reason: str) -> None:
        channels = self._values.get(node)
        if channels is not None:
            self._fix_labels(channels.labels, reason)

    def _name(self, arg: object) -> str | None:
        """The parameter or buffer that an argument is."""
        return self.names.get(arg.name) if isinstance(arg, Node) else None

    def _attach(self, arg: object, dimension: int, labels: Labels) -> None:
        name = self._name(arg)
        if name is None:
            if arg is not None:
                self._fix_labels(labels, f"{arg} is computed when the model runs")
            return
        known = self.dimensions.setdefault(name, {})
        if dimension in known:
            self._unite(known[dimension], labels)
        known[dimension] = labels

    def _follow(self, node: Node) -> Channels | None:
        rule = _RULES.get(node.target)
        if rule is None and torch.Tag.pointwise in getattr(node.target, "tags", ()):
            rule = _pointwise
        result = rule(self, node) if rule is not None else None
        if rule is None:
            self._refuse(node, f"{node.target} does more with them than to keep them apart")
        return result

    def _refuse(self, node: Node, reason: str) -> None:
        for source in node.all_input_nodes:
            self._fix(source, reason)
            name = self._name(source)
            if name is not None:
                self._read.add(name)


def _shape(node: object) -> tuple[int, ...]:
    assert isinstance(node, Node)
    value = node.meta["val"]
    first = value[0] if isinstance(value, (tuple, list)) else value
    return tuple(int(d) for d in first.shape)


def _source(graph: ChannelGraph, node: Node) -> Channels | None:
    source = node.args[0]
    assert isinstance(source, Node), node
    return graph._values.get(source)


def _convolution(graph: ChannelGraph, node: Node) -> Channels | None:
    x, weight, bias = (*node.args, None)[:3]
    source, shape = _source(graph, node), _shape(weight)
    groups = node.args[-1] if len(node.args) in (7, 9) else 1
    assert isinstance(groups, int), node
    depthwise = groups == shape[0] == _shape(x)[1] and groups > 1
    if groups > 1 and not depthwise:
        graph._refuse(node, "a grouped convolution reads them")
    elif not depthwise and source is not None:
        graph._attach(weight, 1, source.labels)
    labels = source.labels if depthwise and source is not None else graph._new(shape[0])
    for arg in (weight, bias):
        graph._attach(arg, 0, labels)
    if groups > 1 and not depthwise:
        graph._fix_labels(labels, "a grouped convolution computes them")
    elif depthwise and source is None:
        graph._fix_labels(labels, "a depthwise convolution of the model's input computes them")
    positions = math.prod(_shape(node)[2:]) * math.prod(shape[2:])
    inputs = source.labels if source is not None and groups == 1 else None
    name = graph._name(weight)
    if name is not None:
        graph.layers.append(MatmulLayer(name, positions, inputs, shape[1], labels, depthwise))
    return Channels(1, labels)


def _linear(graph: ChannelGraph, node: Node) -> Channels | None:
    x, weight, bias = (*node.args, None)[:3]
    source, shape = _source(graph, node), _shape(weight)
    rank = len(_shape(x))
    inputs = None
    if source is not None and source.axis == rank - 1:
        inputs = source.labels
        graph._attach(weight, 1, inputs)
    elif source is not None:
        graph._refuse(node, "a linear layer reads another dimension than theirs")
    labels = graph._new(shape[0])
    for arg in (weight, bias):
        graph._attach(arg, 0, labels)
    name = graph._name(weight)
    if name is not None:
        positions = math.prod(_shape(node)[1:-1])
        graph.layers.append(MatmulLayer(name, positions, inputs, shape[1], labels, False))
    return Channels(rank - 1, labels)


def _batch_norm(graph: ChannelGraph, node: Node) -> Channels | None:
    source = _source(graph, node)
    if source is None:
        graph._refuse(node, "")
        return None
    for arg in node.args[1:5]:
        graph._attach(arg, 0, source.labels)
    return source


def _pointwise(graph: ChannelGraph, node: Node) -> Channels | None:
    """Operands are aligned at their last dimensions; of one with extent 1 every channel gets the same."""
    rank = len(_shape(node))
    known = [(n, graph._values[n]) for n in node.all_input_nodes if graph._values.get(n) is not None]
    channels = [(n, c, c.axis + rank - len(_shape(n))) for n, c in known if c is not None]
    wide = [(n, c, axis) for n, c, axis in channels if len(c.labels) > 1 or _shape(node)[axis] == 1]
    for narrow, c, axis in channels:
        if len(c.labels) < _shape(node)[axis]:
            graph._fix(narrow, "one channel is spread over all others")
    if not wide or len({axis for _, _, axis in wide}) > 1:
        graph._refuse(node, "channels of different dimensions meet")
        return None
    axis = wide[0][2]
    labels = wide[0][1].labels
    for _, other, _ in wide[1:]:
        graph._unite(labels, other.labels)
    for other_node in node.all_input_nodes:
        if graph._values.get(other_node) is not None:
            continue
        shape = _shape(other_node)
        own = axis - (rank - len(shape))
        if own >= 0 and shape[own] > 1:
            graph._attach(
                other_node, own, labels
            )  # a parameter a channel; of anything else the labels are fixed
    return Channels(axis, labels)


def _same(graph: ChannelGraph, node: Node) -> Channels | None:
    return _source(graph, node)


def _in_second(graph: ChannelGraph, node: Node) -> Channels | None:
    """Pooling and up-sampling over the last dimensions."""
    source = _source(graph, node)
    if source is not None and source.axis != 1:
        graph._refuse(node, "pooling runs over them")
        return None
    return source


def _reduction(graph: ChannelGraph, node: Node) -> Channels | None:
    source, x = _source(graph, node), node.args[0]
    if source is None:
        return None
    rank = len(_shape(x))
    given = node.args[1] if len(node.args) > 1 else None
    dims = (
        [given]
        if isinstance(given, int)
        else list(given)
        if isinstance(given, (list, tuple))
        else range(rank)
    )
    reduced = {d % rank for d in dims if isinstance(d, int)}
    if source.axis in reduced:
        graph._refuse(node, "a reduction runs over them")
        return None
    keeps = len(_shape(node)) == rank
    return Channels(source.axis - (0 if keeps else sum(d < source.axis for d in reduced)), source.labels)


def _view(graph: ChannelGraph, node: Node) -> Channels | None:
    source = _source(graph, node)
    if source is None:
        return None
    before, after = _shape(node.args[0]), _shape(node)
    axis, size = source.axis, before[source.axis]
    leading = math.prod(before[:axis])
    for k, extent in enumerate(after):
        if math.prod(after[:k]) != leading or extent < size:
            continue
        if extent == size:
            return Channels(k, source.labels)
        # Channels are joined with what lies behind them: each is as many positions as that has.
        end = next((e for e in range(axis + 1, len(before) + 1) if math.prod(before[axis:e]) == extent), None)
        if end is not None:
            return Channels(k, np.repeat(source.labels, extent // size))
    graph._refuse(node, "a change of shape divides them")
    return None


def _permutation(graph: ChannelGraph, node: Node) -> Channels | None:
    source, rank = _source(graph, node), len(_shape(node))
    if source is None:
        return None
    if node.target is aten.permute.default:
        order = node.args[1]
        assert isinstance(order, (list, tuple)), node
        return Channels([d % rank for d in order if isinstance(d, int)].index(source.axis), source.labels)
    first, second = (d % rank for d in node.args[1:3] if isinstance(d, int))
    return Channels({first: second, second: first}.get(source.axis, source.axis), source.labels)


def _concatenation(graph: ChannelGraph, node: Node) -> Channels | None:
    operands = node.args[0]
    assert isinstance(operands, (list, tuple)), node
    dim = node.args[1] if len(node.args) > 1 else 0
    assert isinstance(dim, int), node
    dim %= len(_shape(node))
    channels = [graph._values.get(n) if isinstance(n, Node) else None for n in operands]
    if any(c is None or c.axis != channels[0].axis for c in channels) or channels[0] is None:  # type: ignore[union-attr]
        graph._refuse(node, "they are concatenated with what has no channels of a layer")
        return None
    labels = [c.labels for c in channels if c is not None]
    if dim == channels[0].axis:
        return Channels(dim, np.concatenate(labels))
    for other in labels[1:]:
        graph._unite(labels[0], other)
    return channels[0]


def _slice(graph: ChannelGraph, node: Node) -> Channels | None:
    source = _source(graph, node)
    dim = node.args[1] if len(node.args) > 1 else 0
    if source is not None and isinstance(dim, int) and dim % len(_shape(node)) == source.axis:
        if _shape(node) == _shape(node.args[0]):
            return source
        graph._refuse(node, "a part of them is taken by number")
        return None
    return source


def _pad(graph: ChannelGraph, node: Node) -> Channels | None:
    source, pads = _source(graph, node), node.args[1]
    assert isinstance(pads, (list, tuple)), node
    if source is None:
        return None
    behind = len(_shape(node)) - 1 - source.axis
    if any(pads[2 * behind : 2 * behind + 2]):
        graph._refuse(node, "a fixed number of channels is padded to them")
        return None
    return source


def _element(graph: ChannelGraph, node: Node) -> Channels | None:
    return _source(graph, node) if node.args[1] == 0 else None


_Rule = Callable[[ChannelGraph, Node], Channels | None]

_RULES: dict[object, _Rule] = {
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), _convolution),
    **dict.fromkeys((aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding), _convolution),
    aten.linear.default: _linear,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    operator.getitem: _element,
    **dict.fromkeys(
        (
            aten.adaptive_avg_pool2d.default,
            aten.adaptive_max_pool2d.default,
            aten.avg_pool2d.default,
            aten.max_pool2d.default,
            aten.max_pool2d_with_indices.default,
            aten.upsample_bilinear2d.vec,
            aten.upsample_nearest2d.vec,
        ),
        _in_second,
    ),
    **dict.fromkeys(
        (aten.clone.default, aten.contiguous.default, aten.detach.default, aten.alias.default), _same
    ),
    **dict.fromkeys((aten.mean.dim, aten.sum.dim_IntList, aten.amax.default), _reduction),
    **dict.fromkeys((aten.view.default, aten.reshape.default, aten._unsafe_view.default), _view),
    **dict.fromkeys(
        (aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.flatten.using_ints), _view
    ),
    **dict.fromkeys((aten.permute.default, aten.transpose.int), _permutation),
    aten.hardswish.default: _pointwise,  # which has no tag that says so
    aten.cat.default: _concatenation,
    aten.slice.Tensor: _slice,
    **dict.fromkeys((aten.pad.default, aten.constant_pad_nd.default), _pad),
}


def multiplications(layers: Sequence[MatmulLayer], kept: Callable[[Labels], int]) -> int:
    """Multiply-accumulates of one sample when only some labels are kept.

    Args:
        layers: the layers.
        kept: how many of some labels are kept.
    """
    total = 0
    for layer in layers:
        inputs = 1 if layer.depthwise else layer.input_count if layer.inputs is None else kept(layer.inputs)
        total += layer.positions * inputs * kept(layer.outputs)
    return total
