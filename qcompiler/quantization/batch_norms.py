"""Batch norms become part of the layer before them, or depthwise convolutions.

A batch norm at inference is ``y[c] = scale[c] * x[c] + shift[c]``. Behind a convolution or linear layer, that
goes into the layer's weights and bias. torchao folds such pairs too, but loses the bias of a layer that is
called twice, and changes what other users of a layer's result see; so nothing is left for it to fold.

Where a batch norm follows something else (a concatenation in DenseNet, a sum in pre-activation ResNets), or a
convolution whose result has further users, it is itself a depthwise convolution of one tap, for which there
is an integer kernel: with one scale a channel, its 8-bit weights are exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import GraphModule, Node

from qcompiler.quantization.operator_classes import ORIGIN, aten, shape_of

FOLDED = "qcompiler_folded"
"""Key of ``Node.meta``: for a layer with a batch norm folded into it, the :class:`Folded` that it came from."""


@dataclass(frozen=True)
class Folded:
    """A layer and the batch norm that was folded into it, as paths of the model's tensors.

    Attributes:
        weight: the layer's weight, or None where the batch norm itself became a depthwise convolution.
        bias: the layer's bias, or None.
        norm: the batch norm's weight and bias, each of which may be None, and its running mean and variance.
        momentum: share of a batch in the running statistics.
        epsilon: what is added to the variance.
    """

    weight: str | None
    bias: str | None
    norm: tuple[str | None, str | None, str, str]
    momentum: float
    epsilon: float


_CONVOLUTIONS = frozenset(
    {
        aten.conv1d.default,
        aten.conv1d.padding,
        aten.conv2d.default,
        aten.conv2d.padding,
        aten.conv3d.default,
        aten.conv3d.padding,
    }
)
NORMAL = "qcompiler_normal"
"""Key of ``Node.meta``: the distribution of a layer's result that the batch norm in it tells."""

_BATCH_NORM = aten._native_batch_norm_legit_no_training.default


def attribute(model: GraphModule, path: str) -> torch.Tensor:
    """A module's tensor by the path that a ``get_attr`` node names."""
    value: object = model
    for name in path.split("."):
        value = getattr(value, name)
    assert isinstance(value, torch.Tensor)
    return value


def rewrite_batch_norms(model: GraphModule, depthwise: bool) -> None:
    """Fold batch norms into the layers before them, and replace others, in place.

    A batch norm over other than four dimensions that cannot be folded stays as it is, and so does one of the
    model's own input, which would be quantized before and after.

    Args:
        model: a graph of functional operators.
        depthwise: whether what cannot be folded may become a depthwise convolution.
    """
    rewriter = _Rewriter(model)
    for node in list(model.graph.nodes):
        if node.target is _BATCH_NORM:
            node.meta[ORIGIN] = "batch_norm"
            rewriter.rewrite(node, depthwise)
    model.graph.eliminate_dead_code()
    model.recompile()


def _after_layer(model: GraphModule) -> set[Node]:
    """Nodes that depend on a convolution or linear layer."""
    found: set[Node] = set()
    for node in model.graph.nodes:
        if _is_layer(node) or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _is_layer(node: Node) -> bool:
    return node.target in _CONVOLUTIONS or node.target is aten.linear.default


def _is_constant(arg: object) -> bool:
    return arg is None or (isinstance(arg, Node) and arg.op == "get_attr")


def _folded(node: Node, weight: object, bias: object) -> Folded:
    gamma, beta, mean, variance, momentum, epsilon = node.args[1:7]
    assert isinstance(momentum, float), node
    assert isinstance(epsilon, float), node
    norm = (_path(gamma), _path(beta), str(_path(mean)), str(_path(variance)))
    return Folded(_path(weight), _path(bias), norm, momentum, epsilon)


def _path(arg: object) -> str | None:
    return str(arg.target) if isinstance(arg, Node) else None


@dataclass(frozen=True)
class Normal:
    """Normal distributions, one a channel, as float64 vectors."""

    mean: torch.Tensor
    deviation: torch.Tensor


@dataclass(frozen=True)
class _Affine:
    """A batch norm's scale and shift, float64, one value a channel."""

    scale: torch.Tensor
    shift: torch.Tensor


class _Rewriter:
    def __init__(self, model: GraphModule) -> None:
        self.model = model
        self.inside = _after_layer(model)
        self.folded: dict[tuple[object, ...], tuple[Node, Node]] = {}

    def rewrite(self, node: Node, depthwise: bool) -> None:
        source, parameters = node.args[0], node.args[1:5]
        first_only = all(user.args[1] == 0 for user in node.users)
        if not isinstance(source, Node) or not first_only or not all(_is_constant(p) for p in parameters):
            return
        rank = len(shape_of(source))
        # The channels of a linear layer's result are its last dimension, those of a batch norm the second.
        foldable = (
            _is_layer(source)
            and all(_is_constant(a) for a in source.args[1:3])
            and (source.target in _CONVOLUTIONS or rank == 2)
        )
        if foldable and (len(source.users) == 1 or rank != 4):
            self._fold(node, source)
        elif depthwise and rank == 4 and source in self.inside:
            affine = self._affine(node)
            weight = affine.scale.reshape(-1, 1, 1, 1)
            constants = self._register(node, node.name, weight, affine.shift)
            groups = weight.shape[0]
            new = self._insert(node, aten.conv2d.default, source, constants, [1, 1], [0, 0], [1, 1], groups)
            new.meta[ORIGIN] = "batch_norm"
            new.meta[FOLDED] = _folded(node, None, None)
            new.meta[NORMAL] = self._normal(node)
            for key in ("nn_module_stack", "stack_trace"):
                if key in node.meta:
                    new.meta[key] = node.meta[key]

    def _tensor(self, arg: object) -> torch.Tensor | None:
        return attribute(self.model, str(arg.target)).detach().double() if isinstance(arg, Node) else None

    def _affine(self, node: Node) -> _Affine:
        gamma, beta, mean, variance = (self._tensor(p) for p in node.args[1:5])
        epsilon = node.args[6]
        assert mean is not None, node
        assert variance is not None, node
        assert isinstance(epsilon, float), node
        scale = torch.rsqrt(variance + epsilon)
        if gamma is not None:
            scale = scale * gamma
        shift = -mean * scale
        return _Affine(scale, shift if beta is None else shift + beta)

    def _normal(self, node: Node) -> Normal:
        """What a batch norm's result is, if its input is as in training."""
        gamma, beta, mean, _ = (self._tensor(p) for p in node.args[1:5])
        assert mean is not None, node
        return Normal(
            torch.zeros_like(mean) if beta is None else beta,
            torch.ones_like(mean) if gamma is None else gamma.abs(),
        )

    def _fold(self, node: Node, layer: Node) -> None:
        _, weight_node, bias_node, *rest = (*layer.args, None)[: max(len(layer.args), 3)]
        key = (weight_node, bias_node, *node.args[1:5], node.args[6])
        # A module that is called twice is folded once.
        if key not in self.folded:
            affine, weight, bias = self._affine(node), self._tensor(weight_node), self._tensor(bias_node)
            assert weight is not None, layer
            scaled = weight * affine.scale.reshape(-1, *[1] * (weight.dim() - 1))
            shifted = affine.shift if bias is None else affine.shift + bias * affine.scale
            self.folded[key] = self._register(node, layer.name, scaled, shifted)
        source = layer.args[0]
        assert isinstance(source, Node)
        new = self._insert(node, layer.target, source, self.folded[key], *rest)
        new.meta.update({k: v for k, v in layer.meta.items() if k != "val"})
        new.meta[FOLDED] = _folded(node, weight_node, bias_node)
        new.meta[NORMAL] = self._normal(node)

    def _register(
        self, node: Node, prefix: str, weight: torch.Tensor, bias: torch.Tensor
    ) -> tuple[Node, Node]:
        """Add weight and bias to the module; the nodes that read them stand before ``node``."""
        fake_mode = node.meta["val"][0].fake_mode
        nodes = []
        for name, tensor in ((f"{prefix}_folded_weight", weight), (f"{prefix}_folded_bias", bias)):
            parameter = torch.nn.Parameter(tensor.float().contiguous(), requires_grad=False)
            self.model.register_parameter(name, parameter)
            with self.model.graph.inserting_before(node):
                nodes.append(self.model.graph.get_attr(name))
            nodes[-1].meta["val"] = fake_mode.from_tensor(parameter)
        return nodes[0], nodes[1]

    def _insert(
        self, node: Node, target: object, source: Node, constants: tuple[Node, Node], *rest: object
    ) -> Node:
        """Replace a batch norm's first result by a layer with the given weight and bias."""
        with self.model.graph.inserting_before(node):
            new = self.model.graph.call_function(target, (source, *constants, *rest))  # type: ignore[arg-type]
        new.meta["val"] = node.meta["val"][0]
        for user in list(node.users):
            user.replace_all_uses_with(new)
        return new
