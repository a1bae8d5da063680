"""One spelling for operators that have several, so that quantization and the import see the fewest."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import GraphModule, Node

from qcompiler.quantization.attention import spelled_attention
from qcompiler.quantization.emitter import Emitter
from qcompiler.quantization.operator_classes import ORIGIN, argument, aten, shape_of

_COPIES = frozenset({aten.alias.default, aten.detach.default, aten.lift_fresh_copy.default})

_SELU_ALPHA = 1.6732632423543772848170429916717
_SELU_SCALE = 1.0507009873554804934193349852946
"""The constants of Klambauer et al., which PyTorch computes with."""


def canonicalize(model: GraphModule) -> None:
    """Remove copies and respell operators, in place; every value stays what it was.

    - ``conv2d(x, w, b, stride, "same")`` -> ``conv2d(x, w, b, stride, [1, 1])``, after a ``pad`` if need be
    - ``_unsafe_view`` -> ``view``
    - ``channel_shuffle(x, groups)`` -> ``view``, ``transpose``, ``clone``, ``view``
    - ``pixel_shuffle(x, r)`` -> ``view``, ``permute``, ``clone``, ``view``
    - ``avg_pool2d(x, ..., divisor_override=d)`` -> ``pad``, ``avg_pool2d`` of whole windows, ``* area / d``
    - ``rsub(x, c)``, which is ``c - x`` -> ``x * -1 + c``
    - ``mish(x)`` -> ``x * tanh(softplus(x))``
    - ``selu(x)`` -> ``elu(x, alpha) * scale``
    - ``celu(x, alpha)`` -> ``elu(x / alpha) * alpha``
    - ``add(x, y, alpha=a)`` -> ``x + y * a``, and so for ``sub``
    - ``scaled_dot_product_attention(q, k, v, mask)`` -> ``softmax(q k^T * scale + mask) v``

    Args:
        model: a graph of functional operators, so that a copy and its origin always have one value.
    """
    for node in list(model.graph.nodes):
        # A clone with a memory format may be what allows the view after it.
        if (node.target is aten.clone.default and not node.kwargs) or node.target in _COPIES:
            node.replace_all_uses_with(node.args[0])
            continue
        respell = _SPELLINGS.get(node.target)
        if respell is not None:
            with model.graph.inserting_before(node):
                new = respell(Emitter(model, node), node)
            if new is not node:
                node.replace_all_uses_with(new)
                # Attention may draw random numbers, and is never dead code to torch.
                model.graph.erase_node(node)
    model.graph.eliminate_dead_code()
    model.recompile()


def _source(node: Node) -> Node:
    source = node.args[0]
    assert isinstance(source, Node), node
    return source


def _view(emit: Emitter, node: Node) -> Node:
    new = emit(aten.view.default, *node.args)
    del new.meta[ORIGIN]
    return new


def _channel_shuffle(emit: Emitter, node: Node) -> Node:
    source, groups = _source(node), node.args[1]
    assert isinstance(groups, int), node
    batch, channels, *rest = shape_of(source)
    split = emit(aten.view.default, source, [batch, groups, channels // groups, *rest])
    swapped = emit(aten.transpose.int, split, 1, 2)
    copied = emit(aten.clone.default, swapped, memory_format=torch.contiguous_format)
    return emit(aten.view.default, copied, [batch, channels, *rest])


def _pixel_shuffle(emit: Emitter, node: Node) -> Node:
    source, factor = _source(node), node.args[1]
    assert isinstance(factor, int), node
    *batch, channels, height, width = shape_of(source)
    parts = [*batch, channels // factor**2, factor, factor, height, width]
    c, row, column, h, w = range(len(batch), len(parts))
    split = emit(aten.view.default, source, parts)
    order = [*range(len(batch)), c, h, row, w, column]
    copied = emit(
        aten.clone.default,
        emit(aten.permute.default, split, order),
        memory_format=torch.contiguous_format,
    )
    return emit(aten.view.default, copied, list(shape_of(node)))


def _pool_with_divisor(emit: Emitter, node: Node) -> Node:
    """Pads so far that every window is whole, and rescales the averages of whole windows."""
    divisor = argument(node, 6, "divisor_override")
    if divisor is None:
        return node
    assert isinstance(divisor, int), node
    source = _source(node)
    kernel = _pair(node.args[1])
    stride = _pair(argument(node, 2, "stride") or kernel)
    padding = _pair(argument(node, 3, "padding", 0))
    pads: list[int] = []
    for axis in (1, 0):  # aten.pad begins with the last axis
        size, out = shape_of(source)[axis - 2], shape_of(node)[axis - 2]
        after = (out - 1) * stride[axis] + kernel[axis] - size - padding[axis]
        pads += [padding[axis], max(after, 0)]
    if any(pads):
        source = emit(aten.pad.default, source, pads)
    averages = emit(aten.avg_pool2d.default, source, kernel, stride)
    return emit(aten.mul.Tensor, averages, kernel[0] * kernel[1] / divisor)


def _pair(value: object) -> list[int]:
    values = [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, int)]
    assert len(values) in (1, 2), value
    return values * 2 if len(values) == 1 else values


def _reversed_difference(emit: Emitter, node: Node) -> Node:
    alpha = argument(node, 2, "alpha", 1)
    assert isinstance(alpha, (int, float)), node
    negative = emit(aten.mul.Tensor, _source(node), -alpha)
    return emit(aten.add.Tensor, negative, node.args[1])


def _mish(emit: Emitter, node: Node) -> Node:
    gate = emit(aten.tanh.default, emit(aten.softplus.default, _source(node)))
    return emit(aten.mul.Tensor, _source(node), gate)


def _selu(emit: Emitter, node: Node) -> Node:
    return emit(aten.mul.Tensor, emit(aten.elu.default, _source(node), _SELU_ALPHA), _SELU_SCALE)


def _celu(emit: Emitter, node: Node) -> Node:
    alpha = argument(node, 1, "alpha", 1.0)
    return emit(aten.mul.Tensor, emit(aten.elu.default, emit(aten.div.Tensor, _source(node), alpha)), alpha)


def _weighted(emit: Emitter, node: Node) -> Node:
    alpha = node.kwargs.get("alpha", 1)
    if alpha == 1:
        return node
    source, other = _source(node), node.args[1]
    assert isinstance(alpha, (int, float)), node
    if isinstance(other, Node):
        return emit(node.target, source, emit(aten.mul.Tensor, other, alpha))  # type: ignore[arg-type]
    assert isinstance(other, (int, float)), node
    return emit(node.target, source, other * alpha)  # type: ignore[arg-type]


def _pad_in_numbers(emit: Emitter, node: Node) -> Node:
    """An even kernel pads one more at the end than at the start; the rest is then a ``pad`` of its own."""
    x, weight, bias = _source(node), node.args[1], argument(node, 2, "bias")
    stride, padding = argument(node, 3, "stride", [1, 1]), argument(node, 4, "padding", "valid")
    dilation, groups = argument(node, 5, "dilation", [1, 1]), argument(node, 6, "groups", 1)
    assert isinstance(weight, Node), node
    assert isinstance(dilation, (list, tuple)), node
    totals = [0, 0]
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, shape_of(weight)[2:], strict=True)]
    if any(total % 2 for total in totals):
        x = emit(aten.pad.default, x, [0, totals[1] % 2, 0, totals[0] % 2])
    halves = [total // 2 for total in totals]
    new = emit(aten.conv2d.default, x, weight, bias, stride, halves, dilation, groups)
    del new.meta[ORIGIN]
    return new


_SPELLINGS: dict[object, Callable[[Emitter, Node], Node]] = {
    aten._unsafe_view.default: _view,
    aten.add.Tensor: _weighted,
    aten.avg_pool2d.default: _pool_with_divisor,
    aten.celu.default: _celu,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.conv2d.padding: _pad_in_numbers,
    aten.mish.default: _mish,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.rsub.Scalar: _reversed_difference,
    aten.rsub.Tensor: _reversed_difference,
    aten.scaled_dot_product_attention.default: spelled_attention,
    aten.selu.default: _selu,
    aten.sub.Tensor: _weighted,
}
