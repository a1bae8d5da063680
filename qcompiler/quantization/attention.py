"""Attention as matrix products and a softmax.

TVM has an operator for attention, but it takes no mask of booleans, passes over a scale, and is one kernel whose products
read the keys across; products of their own read transposed keys along.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.fx import Node

from qcompiler.quantization.emitter import Emitter
from qcompiler.quantization.operator_classes import argument, aten, shape_of

_FAR = 3e38
"""Subtracted from the score of what is masked: finite, so that no difference of infinities comes up, and larger than any
score, so that the exponential is exactly zero."""


def spelled_attention(emit: Emitter, node: Node) -> Node:
    """``scaled_dot_product_attention(q, k, v, mask)`` -> ``softmax(q k^T * scale + mask) v``, of four dimensions.

    - A mask of booleans becomes one of zeros and large negative numbers. A query that may look at nothing gets zeros, as
      in PyTorch.
    - A causal mask becomes a constant.
    - Keys and values of grouped heads are repeated.
    """
    query, key, value = node.args[:3]
    mask, scale = argument(node, 3, "attn_mask"), argument(node, 6, "scale")
    assert isinstance(query, Node), node
    assert isinstance(key, Node), node
    assert isinstance(value, Node), node
    rank = len(shape_of(query))
    if rank > 4:
        return node  # which is refused where it is imported

    def lifted(x: Node) -> Node:
        """Of four dimensions: samples, heads, positions, channels."""
        if rank == 3 and len(shape_of(x)) == 3:
            return emit(aten.unsqueeze.default, x, 1)
        while len(shape_of(x)) < 4:
            x = emit(aten.unsqueeze.default, x, 0)
        return x

    query, key, value = (lifted(x) for x in (query, key, value))
    if shape_of(query)[1] != shape_of(key)[1]:
        key, value = (_repeated(emit, x, shape_of(query)[1]) for x in (key, value))
    factor = 1.0 / math.sqrt(shape_of(query)[-1]) if scale is None else scale
    assert isinstance(factor, (int, float)), node
    # The products are scaled, not the queries: those may come out of a layer that would be quantized for it.
    products = emit(aten.matmul.default, query, emit(aten.transpose.int, key, 2, 3))
    scores = emit(aten.mul.Tensor, products, factor)
    seen = None
    if argument(node, 5, "is_causal", False):
        queries, keys = shape_of(scores)[-2:]
        future = torch.full((1, 1, queries, keys), -_FAR).triu(1)
        scores = emit(aten.add.Tensor, scores, emit.constant(f"causal_mask_{queries}_{keys}", future))
    if isinstance(mask, Node):
        mask = lifted(mask)
        if mask.meta["val"].dtype != torch.bool:
            # A query whose mask is -inf everywhere gets zeros as well.
            kept = emit(aten._to_copy.default, emit(aten.gt.Scalar, mask, -_FAR), dtype=torch.float32)
            seen = emit(aten.clamp.default, emit(aten.sum.dim_IntList, kept, [-1], True), 0.0, 1.0)
            mask = emit(aten.clamp.default, mask, -_FAR)
        else:
            kept = emit(aten._to_copy.default, mask, dtype=torch.float32)
            seen = emit(aten.clamp.default, emit(aten.sum.dim_IntList, kept, [-1], True), 0.0, 1.0)
            mask = emit(aten.mul.Tensor, emit(aten.sub.Tensor, kept, 1.0), _FAR)
        scores = emit(aten.add.Tensor, scores, mask)
    new = emit(aten.matmul.default, emit(aten.softmax.int, scores, -1), value)
    if seen is not None:
        new = emit(aten.mul.Tensor, new, seen)
    for _ in range(rank, 4):
        new = emit(aten.squeeze.dim, new, 1 if rank == 3 else 0)
    return _laid_out(emit, new, node.meta["val"].stride())


def _laid_out(emit: Emitter, x: Node, strides: Sequence[int]) -> Node:
    """A tensor in memory as PyTorch's kernel leaves it, which follows the queries: views of the model rely on it."""
    order = sorted(range(len(strides)), key=lambda axis: -strides[axis])
    if order == list(range(len(strides))):
        return x
    turned = emit(aten.permute.default, x, order)
    copied = emit(aten.clone.default, turned, memory_format=torch.contiguous_format)
    return emit(aten.permute.default, copied, [order.index(axis) for axis in range(len(order))])


def _repeated(emit: Emitter, x: Node, heads: int) -> Node:
    """Each head as often as there are queries for it."""
    samples, own, *rest = shape_of(x)
    wide = emit(aten.expand.default, emit(aten.unsqueeze.default, x, 2), [samples, own, heads // own, *rest])
    copied = emit(aten.clone.default, wide, memory_format=torch.contiguous_format)
    return emit(aten.view.default, copied, [samples, heads, *rest])
