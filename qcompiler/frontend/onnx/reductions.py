"""Operators that reduce axes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from qcompiler.frontend.onnx.node import Call, Node, Value

Reduction = Callable[[torch.Tensor, list[int], bool], torch.Tensor]

_AXES_AS_INPUT = {"ReduceSum": 13}
"""Opset from which the axes are an input; 18 for the others."""


def _reduce(function: Reduction) -> Callable[[Node], Call | Value]:
    def convert(node: Node) -> Call | Value:
        rank = node.rank()
        late = node.opset >= _AXES_AS_INPUT.get(node.op_type, 18)
        axes = node.integers(1) if late else node.attr_ints("axes", None)
        if not axes:
            if node.attr_int("noop_with_empty_axes", 0):
                return node.value(0)
            axes = list(range(rank))
        chosen = sorted(a % rank for a in axes)
        keep = bool(node.attr_int("keepdims", 1))
        return Call(lambda x: function(x, chosen, keep), [node.operand(0)])

    return convert


def _product(x: torch.Tensor, axes: list[int], keep: bool) -> torch.Tensor:
    for axis in reversed(axes):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(function: Callable[..., torch.Tensor]) -> Callable[[Node], Call]:
    def convert(node: Node) -> Call:
        axis, keep = node.axis(0), bool(node.attr_int("keepdims", 1))
        if node.attr_int("select_last_index", 0):
            node.refuse("select_last_index is not known; the first of equal elements is taken")
        return Call(lambda x: function(x, axis, keep), [node.operand(0)])

    return convert


def _cumulative_sum(node: Node) -> Call:
    axis = int(node.number(1) or 0)
    if node.attr_int("exclusive", 0) or node.attr_int("reverse", 0):
        node.refuse("exclusive and reverse sums are not known")
    return Call(lambda x: torch.cumsum(x, axis), [node.operand(0)])


def _norm(node: Node) -> Call:
    axis, order = node.axis(-1), node.attr_int("p", 2)
    if order == 1:
        return Call(lambda x: x / x.abs().sum(axis, keepdim=True), [node.operand(0)])
    return Call(lambda x: x / torch.sqrt((x * x).sum(axis, keepdim=True)), [node.operand(0)])


CONVERTERS: dict[str, Any] = {
    "ArgMax": _extreme(torch.argmax),
    "ArgMin": _extreme(torch.argmin),
    "CumSum": _cumulative_sum,
    "LpNormalization": _norm,
    "ReduceL1": _reduce(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _reduce(lambda x, axes, keep: torch.sqrt((x * x).sum(axes, keepdim=keep))),
    "ReduceLogSumExp": _reduce(lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    "ReduceMax": _reduce(lambda x, axes, keep: torch.amax(x, axes, keepdim=keep)),
    "ReduceMean": _reduce(lambda x, axes, keep: x.mean(axes, keepdim=keep)),
    "ReduceMin": _reduce(lambda x, axes, keep: torch.amin(x, axes, keepdim=keep)),
    "ReduceProd": _reduce(_product),
    "ReduceSum": _reduce(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceSumSquare": _reduce(lambda x, axes, keep: (x * x).sum(axes, keepdim=keep)),
}
