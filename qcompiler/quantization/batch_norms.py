"""Batch norms that no convolution before them can take into its weights.

torchao folds a batch norm into the convolution or linear layer that it follows. Where it follows something
else (a concatenation in DenseNet, a sum in pre-activation ResNets), or a convolution whose result has further
users, it is itself a depthwise convolution of one tap, ``y[c] = w[c] * x[c] + b[c]``, for which there is an
integer kernel: with one scale a channel, its 8-bit weights are exact.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from qcompiler.quantization.operator_classes import ORIGIN, aten, shape_of

_CONVOLUTIONS = frozenset({aten.conv2d.default, aten.conv2d.padding})
_MATMULS = _CONVOLUTIONS | {aten.linear.default}


def attribute(model: GraphModule, path: str) -> torch.Tensor:
    """A module's tensor by the path that a ``get_attr`` node names."""
    value: object = model
    for name in path.split("."):
        value = getattr(value, name)
    assert isinstance(value, torch.Tensor)
    return value


def _after_matmul(nodes: list[Node]) -> set[Node]:
    """Nodes that depend on a convolution or linear layer."""
    found: set[Node] = set()
    for node in nodes:
        if node.target in _MATMULS or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _folds(source: Node) -> bool:
    return source.target in _MATMULS and len(source.users) == 1


def rewrite_batch_norms(model: GraphModule) -> None:
    """Replace batch norms over four dimensions that cannot be folded by depthwise convolutions, in place.

    A batch norm of the model's own input is left alone: it would be quantized before and after.
    """
    inside = _after_matmul(list(model.graph.nodes))
    for node in list(model.graph.nodes):
        if node.target is not aten._native_batch_norm_legit_no_training.default:
            continue
        node.meta[ORIGIN] = "batch_norm"
        source, *parameters = node.args[:5]
        if source not in inside or _folds(source) or len(shape_of(source)) != 4:
            continue
        if any(user.args[1] != 0 for user in node.users) or not all(
            p is None or p.op == "get_attr" for p in parameters
        ):
            continue
        gamma, beta, mean, variance = (
            None if p is None else attribute(model, p.target).detach().double() for p in parameters
        )
        assert mean is not None, node
        assert variance is not None, node
        weight = torch.rsqrt(variance + node.args[6])
        weight = weight if gamma is None else weight * gamma
        bias = -mean * weight if beta is None else beta - mean * weight
        _replace(model, node, source, weight.float().reshape(-1, 1, 1, 1), bias.float())
    model.graph.eliminate_dead_code()
    model.recompile()


def _replace(model: GraphModule, node: Node, source: Node, weight: torch.Tensor, bias: torch.Tensor) -> None:
    names = (f"{node.name}_weight", f"{node.name}_bias")
    for name, tensor in zip(names, (weight, bias), strict=True):
        model.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    with model.graph.inserting_before(node):
        constants = [model.graph.get_attr(name) for name in names]
        for constant, tensor in zip(constants, (weight, bias), strict=True):
            constant.meta["val"] = source.meta["val"].fake_mode.from_tensor(tensor)
        new = model.graph.call_function(
            aten.conv2d.default, (source, *constants, [1, 1], [0, 0], [1, 1], weight.shape[0])
        )
    for key in ("nn_module_stack", "stack_trace"):
        if key in node.meta:
            new.meta[key] = node.meta[key]
    new.meta["val"] = source.meta["val"]
    new.meta[ORIGIN] = "batch_norm"
    for user in list(node.users):
        user.replace_all_uses_with(new)
