"""Attention in the one form that is imported: TVM takes no mask of booleans, and passes over a scale."""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from qcompiler.quantization.emitter import Emitter
from qcompiler.quantization.operator_classes import argument, aten, shape_of

_FAR = 3e38
"""Subtracted from the score of what is masked: finite, so that no difference of infinities comes up, and larger than any
score, so that the exponential is exactly zero."""


def plain_attention(emit: Emitter, node: Node) -> Node:
    """``scaled_dot_product_attention`` of four dimensions, with a float mask of four or none, and the default scale.

    - A mask of booleans becomes one of zeros and large negative numbers. A query that may look at nothing gets zeros, as
      in PyTorch.
    - A scale is multiplied into the queries.
    - Keys and values of grouped heads are repeated.
    """
    query, key, value = node.args[:3]
    mask, scale = argument(node, 3, "attn_mask"), argument(node, 6, "scale")
    assert isinstance(query, Node), node
    assert isinstance(key, Node), node
    assert isinstance(value, Node), node
    boolean = isinstance(mask, Node) and mask.meta["val"].dtype == torch.bool
    rank, grouped = len(shape_of(query)), shape_of(query)[:-2] != shape_of(key)[:-2]
    fits = mask is None or (isinstance(mask, Node) and len(shape_of(mask)) == 4)
    if rank == 4 and fits and not boolean and scale is None and not grouped:
        return node

    def lifted(x: Node, heads: bool) -> Node:
        """Of four dimensions: samples, heads, positions, channels."""
        if heads and len(shape_of(x)) == 3:
            return emit(aten.unsqueeze.default, x, 1)
        while len(shape_of(x)) < 4:
            x = emit(aten.unsqueeze.default, x, 0)
        return x

    query, key, value = (lifted(x, rank == 3) for x in (query, key, value))
    if grouped:
        key, value = (_repeated(emit, x, shape_of(query)[1]) for x in (key, value))
    if scale is not None:
        assert isinstance(scale, (int, float)), node
        query = emit(aten.mul.Tensor, query, scale * math.sqrt(shape_of(query)[-1]))
    causal = argument(node, 5, "is_causal", False)
    seen = None
    if isinstance(mask, Node):
        mask = lifted(mask, rank == 3)
        if boolean:
            kept = emit(aten._to_copy.default, mask, dtype=torch.float32)
            seen = emit(aten.clamp.default, emit(aten.sum.dim_IntList, kept, [-1], True), 0.0, 1.0)
            mask = emit(aten.mul.Tensor, emit(aten.sub.Tensor, kept, 1.0), _FAR)
    new = emit(aten.scaled_dot_product_attention.default, query, key, value, mask, 0.0, causal)
    if seen is not None:
        new = emit(aten.mul.Tensor, new, seen)
    for _ in range(rank, 4):
        new = emit(aten.squeeze.dim, new, 1 if rank == 3 else 0)
    return new


def _repeated(emit: Emitter, x: Node, heads: int) -> Node:
    """Each head as often as there are queries for it."""
    samples, own, *rest = shape_of(x)
    wide = emit(aten.expand.default, emit(aten.unsqueeze.default, x, 2), [samples, own, heads // own, *rest])
    copied = emit(aten.clone.default, wide, memory_format=torch.contiguous_format)
    return emit(aten.view.default, copied, [samples, heads, *rest])
