"""Tensors whose channels can be scaled: the layer before them divides by a factor, the layers behind multiply."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from qcompiler.quantization.batch_norms import attribute
from qcompiler.quantization.operator_classes import argument, aten, operator_name, shape_of

_PRODUCERS = frozenset({aten.conv2d.default, aten.linear.default, aten.layer_norm.default})
_CONSUMERS = frozenset({aten.conv2d.default, aten.linear.default})

_POOLS = frozenset({aten.adaptive_avg_pool2d.default, aten.avg_pool2d.default, aten.max_pool2d.default})
_KEEPING = frozenset({aten.clone.default, aten.relu.default})
"""f(x / s) = f(x) / s for any positive factor a channel, and the channels stay where they are; of pools, if they are the
third axis from the end."""


@dataclass(frozen=True)
class Weighted:
    """A layer as the scaling sees it.

    Attributes:
        node: the layer's node.
        weight: the ``get_attr`` node of its weight.
        bias: that of its bias, or None.
        groups: of a convolution, else 1.
    """

    node: Node
    weight: Node
    bias: Node | None
    groups: int = 1


@dataclass(frozen=True)
class Chain:
    """A tensor whose channels can be scaled.

    Attributes:
        producer: the layer that divides.
        tensor: the tensor that the consumers read.
        consumers: the layers that multiply.
        axis: the tensor's axis of channels.
        repeat: how many neighbouring elements of that axis are one channel of the producer; more than 1 behind a
            flatten.
        bound: a clamp's upper bound on the way, which scaling must respect; None without one.
    """

    producer: Weighted
    tensor: Node
    consumers: tuple[Weighted, ...]
    axis: int
    repeat: int
    bound: float | None


@dataclass(frozen=True)
class NoChain:
    """Why the channels of a producer cannot be scaled."""

    reason: str


def find_chains(model: GraphModule, producers: frozenset[object]) -> Iterator[Chain | NoChain]:
    """Each layer of the kinds ``producers`` with the layers that read it, or why they cannot be scaled.

    Args:
        model: a canonical float graph, its batch norms folded.
        producers: among ``conv2d``, ``linear`` and ``layer_norm`` of aten.
    """
    uses = Counter(str(n.target) for n in model.graph.nodes if n.op == "get_attr" for _ in n.users)
    for node in model.graph.nodes:
        if node.target in producers and node.target in _PRODUCERS:
            yield _chain(node, uses)


def _weighted(node: Node, uses: Counter[str]) -> Weighted | NoChain:
    position = 2 if node.target is aten.layer_norm.default else 1
    weight = argument(node, position, "weight")
    bias = argument(node, position + 1, "bias")
    if not isinstance(weight, Node) or weight.op != "get_attr":
        return NoChain(f"{operator_name(node)} has no constant weight")
    if bias is not None and (not isinstance(bias, Node) or bias.op != "get_attr"):
        return NoChain(f"the bias of {operator_name(node)} is computed at run time")
    if node.target is aten.layer_norm.default and len(shape_of(weight)) != 1:
        return NoChain("layer_norm normalizes more than one dimension")
    if any(uses[str(p.target)] > 1 for p in (weight, bias) if isinstance(p, Node)):
        return NoChain(f"the weight of {operator_name(node)} is used more than once")
    groups = argument(node, 6, "groups", 1) if node.target is aten.conv2d.default else 1
    assert isinstance(groups, int), node
    return Weighted(node, weight, bias if isinstance(bias, Node) else None, groups)


def _chain(node: Node, uses: Counter[str]) -> Chain | NoChain:
    producer = _weighted(node, uses)
    if isinstance(producer, NoChain):
        return producer
    axis = 1 if node.target is aten.conv2d.default else len(shape_of(node)) - 1
    repeat, bound, tensor = 1, None, node
    while True:
        users = list(tensor.users)
        if users and all(u.target in _CONSUMERS and u.args[0] is tensor for u in users):
            break
        if len(users) != 1:
            readers = ", ".join(sorted({operator_name(u) for u in users}))
            return NoChain(f"the tensor is read by other than layers: {readers or 'nothing'}")
        (user,) = users
        if _is_upper_clamp(user):
            if bound is not None:
                return NoChain("there are two clamps on the way")
            bound = _upper_bound(user)
        elif user.target in (aten.view.default, aten.flatten.using_ints, aten.reshape.default):
            before, after = shape_of(tensor), shape_of(user)
            if axis == len(before) - 1 and before[-1] == after[-1]:
                axis = len(after) - 1
            elif axis == 1 and len(after) == 2 and before[0] == after[0]:
                repeat *= after[1] // before[1]
            else:
                return NoChain(f"{operator_name(user)} moves the channels")
        elif user.target in (aten.transpose.int, aten.permute.default):
            axis = _order(user).index(axis)
        elif user.target is aten.mean.dim:
            dims = argument(user, 1, "dim")
            spatial = isinstance(dims, (list, tuple)) and {d % 4 for d in dims if isinstance(d, int)} == {
                2,
                3,
            }
            if len(shape_of(tensor)) != 4 or axis != 1 or not spatial:
                return NoChain("a mean over other than both spatial dimensions is on the way")
        elif user.target in _POOLS and axis != len(shape_of(tensor)) - 3:
            return NoChain(f"{operator_name(user)} moves over the channels")
        elif user.target not in _KEEPING | _POOLS:
            return NoChain(f"{operator_name(user)} stands between the layers")
        tensor = user
    consumers = []
    for user in users:
        consumer = _weighted(user, uses)
        if isinstance(consumer, NoChain):
            return consumer
        wanted = 1 if user.target is aten.conv2d.default else len(shape_of(tensor)) - 1
        if wanted != axis:
            return NoChain("the layers have their channels on different axes")
        consumers.append(consumer)
    return Chain(producer, tensor, tuple(consumers), axis, repeat, bound)


def _order(node: Node) -> list[int]:
    """For each axis of a transposed tensor the axis that it was."""
    order = list(range(len(shape_of(node))))
    if node.target is aten.permute.default:
        dims = node.args[1]
        assert isinstance(dims, (list, tuple)), node
        return [order[d] for d in dims if isinstance(d, int)]
    first, second = (d for d in node.args[1:3] if isinstance(d, int))
    order[first], order[second] = order[second], order[first]
    return order


def _is_upper_clamp(node: Node) -> bool:
    """Whether a node is ``min(max(x, 0), bound)``."""
    if node.target is aten.relu6.default:
        return True
    bounds = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    if node.target is aten.clamp.default:
        bounds = argument(node, 1, "min"), argument(node, 2, "max")
    elif node.target is not aten.hardtanh.default:
        return False
    return bounds[0] == 0 and isinstance(bounds[1], (int, float)) and bounds[1] > 0


def _upper_bound(node: Node) -> float:
    if node.target is aten.relu6.default:
        return 6.0
    bound = argument(node, 2, "max", argument(node, 2, "max_val", 1.0))
    assert isinstance(bound, (int, float)), node
    return float(bound)


def consumer_columns(model: GraphModule, chain: Chain, consumer: Weighted) -> torch.Tensor:
    """How large a consumer's weights are for each channel, beside the largest of their row; float64, in [0, 1].

    Each row is an output channel and has a scale of its own, so only the ratios within a row matter.
    """
    grouped = _by_input_channel(attribute(model, str(consumer.weight.target)).double(), consumer.groups)
    largest = grouped.abs().amax(dim=(2, 3), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    columns = (grouped.abs() / largest).amax(dim=(1, 3)).flatten()
    return columns.reshape(-1, chain.repeat).amax(dim=1)


def _by_input_channel(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """A weight as [groups, rows of a group, input channels of a group, elements of the window]."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def scale_chain(model: GraphModule, chain: Chain, factors: torch.Tensor) -> None:
    """Divide the producer's channels by ``factors`` and multiply the consumers' by them, in place.

    Args:
        model: the graph's module.
        chain: what to scale.
        factors: float64, positive, one a channel of the producer.
    """
    producer = chain.producer
    for parameter in (producer.weight, producer.bias):
        if parameter is not None:
            tensor = attribute(model, str(parameter.target))
            tensor.copy_(tensor.double() / factors.reshape(-1, *[1] * (tensor.dim() - 1)))
    columns = factors.repeat_interleave(chain.repeat)
    for consumer in chain.consumers:
        tensor = attribute(model, str(consumer.weight.target))
        grouped = _by_input_channel(tensor.double(), consumer.groups)
        scaled = grouped * columns.reshape(consumer.groups, 1, -1, 1)
        tensor.copy_(scaled.reshape(tensor.shape))
