"""Which class of integer kernel, if any, a node of an exported graph belongs to.

The classes are those of :class:`qcompiler.targets.base.QuantizationRules`. Only functional operators occur, in
the spelling that :mod:`qcompiler.quantization.canonical` gives them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.fx import Node

aten = torch.ops.aten

ORIGIN = "qcompiler_origin"
"""Key of ``Node.meta``: name of the operator that a node was rewritten from."""

MATMUL_CLASSES = frozenset({"conv2d", "linear"})
SHARING_CLASSES = frozenset({"max_pool2d", "data_movement"})
"""Classes that keep every value, so that the output has the input's scale and zero point."""

_UNARY = frozenset(
    {
        aten.abs.default,
        aten.ceil.default,
        aten.clamp.default,
        aten.clamp_max.default,
        aten.clamp_min.default,
        aten.cos.default,
        aten.elu.default,
        aten.erf.default,
        aten.exp.default,
        aten.floor.default,
        aten.gelu.default,
        aten.hardsigmoid.default,
        aten.hardswish.default,
        aten.hardtanh.default,
        aten.leaky_relu.default,
        aten.neg.default,
        aten.relu.default,
        aten.relu6.default,
        aten.sigmoid.default,
        aten.sign.default,
        aten.silu.default,
        aten.sin.default,
        aten.softplus.default,
        aten.square.default,
        aten.tanh.default,
    }
)
"""Defined and finite for every finite input, so that each of the 256 entries of a table is a number."""

_WITH_SCALAR = frozenset(
    {
        aten.add.Scalar,
        aten.add.Tensor,
        aten.div.Scalar,
        aten.div.Tensor,
        aten.mul.Scalar,
        aten.mul.Tensor,
        aten.sub.Scalar,
        aten.sub.Tensor,
    }
)
"""Elementwise if the second operand is a Python number."""

_WITH_ITSELF = frozenset(
    {aten.add.Tensor, aten.maximum.default, aten.minimum.default, aten.mul.Tensor, aten.sub.Tensor}
)
"""Elementwise if both operands are computed from the same tensor."""

_MOVEMENT = frozenset(
    {
        aten.chunk.default,
        aten.clone.default,
        aten.contiguous.default,
        aten.flatten.using_ints,
        aten.permute.default,
        aten.reshape.default,
        aten.slice.Tensor,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.squeeze.default,
        aten.squeeze.dim,
        aten.squeeze.dims,
        aten.t.default,
        aten.transpose.int,
        aten.unsqueeze.default,
        aten.upsample_nearest2d.default,
        aten.upsample_nearest2d.vec,
        aten.view.default,
    }
)


@dataclass(frozen=True)
class Refusal:
    """Why a node has no integer kernel."""

    reason: str


def operator_name(node: Node) -> str:
    """The operator without namespace, overload and in-place underscore: ``conv2d``, ``relu``, ``softmax``."""
    if ORIGIN in node.meta:
        return str(node.meta[ORIGIN])
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.split("::")[-1].strip("_")
    return str(getattr(node.target, "__name__", node.target))


def tensor_inputs(node: Node) -> tuple[Node, ...]:
    """The nodes among a node's arguments, lists included, each once, in order."""
    return tuple(dict.fromkeys(node.all_input_nodes))


def value(node: Node) -> torch.Tensor | None:
    """The fake tensor that a node stands for; None if it stands for something else."""
    val = node.meta.get("val")
    return val if isinstance(val, torch.Tensor) else None


def shape_of(node: Node) -> tuple[int, ...]:
    val = value(node)
    assert val is not None, node
    return tuple(int(d) for d in val.shape)


def is_float32(node: Node) -> bool:
    """Whether a node is one float32 tensor, or a list of them."""
    val = node.meta.get("val")
    values = val if isinstance(val, (tuple, list)) else (val,)
    return all(isinstance(v, torch.Tensor) and v.dtype == torch.float32 for v in values)


def computes_float(node: Node) -> bool:
    """Whether a node takes or gives a floating-point tensor, and reads one of any kind.

    To take one out of a tuple is no operator, and what is made of nothing (``zeros``) is a constant.
    """
    if node.target is operator.getitem or not tensor_inputs(node):
        return False
    values = [n.meta.get("val") for n in (node, *tensor_inputs(node))]
    tensors = [t for v in values for t in (v if isinstance(v, (tuple, list)) else (v,))]
    return any(isinstance(t, torch.Tensor) and t.dtype.is_floating_point for t in tensors)


def argument(node: Node, position: int, name: str, default: object = None) -> object:
    """An argument of an operator, however it was passed."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def is_clamp(node: Node) -> bool:
    """Whether a node is a clamp around zero (relu, relu6, hardtanh ...), which an integer epilogue does."""
    low: object = None
    high: object = None
    if node.target in (aten.relu.default, aten.relu6.default):
        return True
    if node.target is aten.hardtanh.default:
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    elif node.target is aten.clamp.default:
        low, high = argument(node, 1, "min"), argument(node, 2, "max")
    elif node.target is aten.clamp_min.default:
        low = argument(node, 1, "min")
    elif node.target is aten.clamp_max.default:
        high = argument(node, 1, "max")
    else:
        return False
    return (low is None or (isinstance(low, (int, float)) and low <= 0)) and (
        high is None or (isinstance(high, (int, float)) and high > 0)
    )


def is_elementwise(node: Node) -> bool:
    """Whether a node maps every element of one tensor by one function."""
    if node.target in _UNARY:
        return len(tensor_inputs(node)) == 1
    if node.target is aten.pow.Tensor_Scalar:
        exponent = node.args[1]
        return isinstance(exponent, (int, float)) and exponent >= 0 and float(exponent).is_integer()
    return (
        node.target in _WITH_SCALAR
        and isinstance(node.args[0], Node)
        and isinstance(node.args[1], (int, float))
    )


def is_binary_elementwise(node: Node) -> bool:
    """Whether a node would be elementwise if its operands were computed from one tensor of its shape."""
    return node.target in _WITH_ITSELF and all(isinstance(a, Node) for a in node.args[:2])


def is_plain_sum(node: Node) -> bool:
    """Whether a node is the sum of two tensors."""
    return node.target is aten.add.Tensor and all(isinstance(a, Node) for a in node.args[:2])


def _is_constant(arg: object) -> bool:
    return arg is None or (isinstance(arg, Node) and arg.op == "get_attr")


def _matmul(kind: str, rank: int | None) -> Callable[[Node], str | Refusal]:
    def check(node: Node) -> str | Refusal:
        if not all(_is_constant(a) for a in node.args[1:3]):
            return Refusal(f"the weight or bias of this {kind} is computed at run time")
        source = node.args[0]
        assert isinstance(source, Node)
        if rank is not None and len(shape_of(source)) != rank:
            return Refusal(f"its input has {len(shape_of(source))} dimensions; integer kernels take {rank}")
        return kind

    return check


def _pool(kind: str) -> Callable[[Node], str | Refusal]:
    def check(node: Node) -> str | Refusal:
        rank = len(shape_of(node))
        return kind if rank == 4 else Refusal(f"it pools {rank} dimensions; integer kernels take 4")

    return check


def _adaptive(node: Node) -> str | Refusal:
    size, out = shape_of(tensor_inputs(node)[0]), shape_of(node)
    if len(size) != 4:
        return Refusal(f"it pools {len(size)} dimensions; integer kernels take 4")
    if size[2] % out[2] or size[3] % out[3]:
        return Refusal(f"its windows from {size[2]}x{size[3]} to {out[2]}x{out[3]} differ in size")
    return "avg_pool2d"


def _mean(node: Node) -> str | Refusal:
    rank, dims = len(shape_of(tensor_inputs(node)[0])), argument(node, 1, "dim")
    spatial = isinstance(dims, (list, tuple)) and {d % rank for d in dims if isinstance(d, int)} == {2, 3}
    if rank == 4 and spatial:
        return "avg_pool2d"
    return Refusal(f"only means over both spatial dimensions have an integer kernel, not over {dims}")


def _pad(node: Node) -> str | Refusal:
    mode = argument(node, 2, "mode", "constant")
    if mode != "constant":
        return Refusal(f"pad of mode {mode!r} has no integer kernel")
    return _padded_with(argument(node, 3, "value"))


def _constant_pad(node: Node) -> str | Refusal:
    return _padded_with(argument(node, 2, "value", 0))


def _padded_with(fill: object) -> str | Refusal:
    return "data_movement" if fill in (None, 0) else Refusal(f"it pads with {fill}, not with 0")


def _element(node: Node) -> str | Refusal:
    source = tensor_inputs(node)[0]
    if source.target in _MOVEMENT:
        return "data_movement"
    return Refusal(f"{operator_name(source)} has no integer kernel")


_CHECKS: dict[object, Callable[[Node], str | Refusal]] = {
    aten.conv2d.default: _matmul("conv2d", 4),
    aten.linear.default: _matmul("linear", None),
    aten.add.Tensor: lambda _: "add",
    aten.mul.Tensor: lambda _: "mul",
    aten.cat.default: lambda _: "concat",
    aten.max_pool2d.default: _pool("max_pool2d"),
    aten.avg_pool2d.default: _pool("avg_pool2d"),
    aten.adaptive_avg_pool2d.default: _adaptive,
    aten.mean.dim: _mean,
    operator.getitem: _element,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: _constant_pad,
}


def classify(node: Node) -> str | Refusal:
    """Class of the integer kernel that could compute a node on its own, or why there is none.

    Args:
        node: a ``call_function`` node with its fake tensor in ``meta["val"]``.
    """
    elementwise, check = is_elementwise(node), _CHECKS.get(node.target)
    if not elementwise and node.target not in _MOVEMENT and check is None:
        return Refusal(f"{operator_name(node)} has no integer kernel")
    if not is_float32(node) or not all(is_float32(n) for n in tensor_inputs(node)):
        return Refusal("it works on values that are not float32")
    if elementwise:
        return "elementwise"
    return "data_movement" if check is None else check(node)
