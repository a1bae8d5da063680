"""Operators that move elements, and those that compute shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from qcompiler.frontend.onnx.layers import torch_pads
from qcompiler.frontend.onnx.node import Call, Constant, Node, Value, torch_dtype
from qcompiler.frontend.onnx.weights import QuantizedConstant


def _reshaped(node: Node, shape: Sequence[int]) -> Call | Value:
    value = node.value(0)
    if isinstance(value, QuantizedConstant):
        moved = value.reshaped(tuple(value.values.reshape(shape).shape))
        if moved is not None:
            return moved
    return Call(lambda x: torch.reshape(x, list(shape)), [node.operand(0)])


def _reshape(node: Node) -> Call | Value:
    wanted = node.integers(1)
    assert wanted is not None, node.name
    if not node.attr_int("allowzero", 0):
        wanted = [node.shape()[k] if extent == 0 else extent for k, extent in enumerate(wanted)]
    return _reshaped(node, wanted)


def _flatten(node: Node) -> Call | Value:
    shape, axis = node.shape(), node.attr_int("axis", 1)
    axis += len(shape) if axis < 0 else 0
    return _reshaped(node, [math.prod(shape[:axis]), math.prod(shape[axis:])])


def _axes(node: Node, first_opset: int) -> list[int] | None:
    """Axes: an attribute in older opsets, an input since ``first_opset``."""
    return node.attr_ints("axes", None) if node.opset < first_opset else node.integers(1)


def _squeeze(node: Node) -> Call | Value:
    shape, axes = node.shape(), _axes(node, 13)
    gone = {a % len(shape) for a in axes} if axes is not None else {k for k, e in enumerate(shape) if e == 1}
    return _reshaped(node, [extent for k, extent in enumerate(shape) if k not in gone])


def _unsqueeze(node: Node) -> Call | Value:
    axes = _axes(node, 13)
    if axes is None:
        node.refuse("its axes are missing")
    rank = node.rank() + len(axes)
    new = {a % rank for a in axes}
    extents = iter(node.shape())
    return _reshaped(node, [1 if k in new else next(extents) for k in range(rank)])


def _transpose(node: Node) -> Call | Value:
    order = node.attr_ints("perm", None) or list(reversed(range(node.rank())))
    value = node.value(0)
    if isinstance(value, QuantizedConstant):
        return value.transposed(order)
    return Call(lambda x: x.permute(order), [node.operand(0)])


def _concat(node: Node) -> Call:
    axis = node.axis(0)
    return Call(lambda *xs: torch.cat(xs, axis), node.operands())


def _split(node: Node) -> Call:
    axis, extent = node.axis(0), 0
    extent = node.shape()[axis]
    sizes = node.attr_ints("split", None) if node.opset < 13 else node.integers(1)
    if sizes is None:
        count = node.attr_int("num_outputs", len(node.outputs))
        part = -(-extent // count)
        sizes = [min(part, extent - k * part) for k in range(count)]
    parts = list(sizes)
    return Call(lambda x: tuple(torch.split(x, parts, axis)), [node.operand(0)])


def _slice(node: Node) -> Call:
    if node.opset < 10:
        starts, ends = node.attr_ints("starts", None), node.attr_ints("ends", None)
        axes, steps = node.attr_ints("axes", None), None
    else:
        starts, ends, axes, steps = (node.integers(k) for k in (1, 2, 3, 4))
    if starts is None or ends is None:
        node.refuse("its starts or ends are missing")
    shape = node.shape()
    axes = [a % len(shape) for a in axes] if axes is not None else list(range(len(starts)))
    steps = steps or [1] * len(starts)
    ranges = []
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        first, last, stride = slice(start, end if end >= -shape[axis] else None, step).indices(shape[axis])
        if step < 0 and end < -shape[axis]:
            last = -1
        ranges.append((axis, range(first, last, stride)))

    def compute(x: torch.Tensor) -> torch.Tensor:
        for axis, wanted in ranges:
            x = _ranged(x, axis, wanted)
        return x

    return Call(compute, [node.operand(0)])


def _ranged(x: torch.Tensor, axis: int, wanted: range) -> torch.Tensor:
    if wanted == range(x.shape[axis]):
        return x
    if wanted.step < 0 and len(wanted):
        turned = wanted[::-1]
        return torch.flip(_ranged(x, axis, turned), [axis])
    return torch.ops.aten.slice.Tensor(x, axis, wanted.start, max(wanted.stop, wanted.start), wanted.step)  # type: ignore[no-any-return]


def _gather(node: Node) -> Call:
    axis = node.axis(0)
    extent = node.shape()[axis]
    if not node.is_constant(1):
        return Call(lambda x, i: _taken(x, _counted(i, extent), axis), [node.operand(0), node.operand(1)])
    indices = node.constant(1)
    assert indices is not None, node.name
    if indices.ndim == 0:
        index = int(indices) % extent
        return Call(lambda x: torch.select(x, axis, index), [node.operand(0)])
    wanted = torch.from_numpy(np.where(indices < 0, indices + extent, indices).astype(np.int64))
    return Call(lambda x, i: _taken(x, i, axis), [node.operand(0), wanted])


def _counted(indices: torch.Tensor, extent: int) -> torch.Tensor:
    """Indices counted from the front."""
    return torch.where(indices < 0, indices + extent, indices)


def _taken(x: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
    if axis == 0 and x.dim() == 2:
        return F.embedding(indices, x)
    taken = torch.index_select(x, axis, indices.reshape(-1))
    return taken.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _gather_elements(node: Node) -> Call:
    axis = node.axis(0)
    extent = node.shape()[axis]
    return Call(lambda x, i: torch.gather(x, axis, _counted(i, extent)), [node.operand(0), node.operand(1)])


def _expand(node: Node) -> Call:
    wanted = node.integers(1)
    assert wanted is not None, node.name
    shape = np.broadcast_shapes(node.shape(), tuple(wanted))
    return Call(lambda x: x.expand(shape), [node.operand(0)])


def _tile(node: Node) -> Call:
    repeats = node.integers(1)
    assert repeats is not None, node.name
    return Call(lambda x: x.repeat(repeats), [node.operand(0)])


_PAD_MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


def _pad(node: Node) -> Call:
    rank = node.rank()
    if node.opset < 11:
        pads, value = node.attr_ints("pads", None), node.attr_float("value", 0.0)
    else:
        pads, given = node.integers(1), node.number(2)
        value = 0.0 if given is None else given
    mode = node.attr_text("mode", "constant")
    if pads is None or mode not in _PAD_MODES:
        node.refuse(f"its pads are missing or its mode {mode!r} is none of {', '.join(_PAD_MODES)}")
    axes = [a % rank for a in (node.integers(3) or range(rank))]
    before, after = [0] * rank, [0] * rank
    for k, axis in enumerate(axes):
        before[axis], after[axis] = pads[k], pads[k + len(axes)]
    if mode == "constant":
        return Call(lambda x: F.pad(x, torch_pads(before, after), value=value), [node.operand(0)])
    used = max((rank - k for k in range(rank) if before[k] or after[k]), default=0)
    if not used:
        return Call(torch.clone, [node.operand(0)])
    tail = torch_pads(before[rank - used :], after[rank - used :])
    return Call(lambda x: F.pad(x, tail, mode=_PAD_MODES[mode]), [node.operand(0)])


def _depth_to_space(node: Node) -> Call:
    block = node.attr_int("blocksize", 1)
    batch, channels, height, width = node.shape()
    columns_first = node.attr_text("mode", "DCR") == "CRD"
    if columns_first:
        return Call(lambda x: F.pixel_shuffle(x, block), [node.operand(0)])
    rest = channels // block**2

    def compute(x: torch.Tensor) -> torch.Tensor:
        parts = x.reshape(batch, block, block, rest, height, width).permute(0, 3, 4, 1, 5, 2)
        return parts.reshape(batch, rest, height * block, width * block)

    return Call(compute, [node.operand(0)])


def _space_to_depth(node: Node) -> Call:
    block = node.attr_int("blocksize", 1)
    batch, channels, height, width = node.shape()

    def compute(x: torch.Tensor) -> torch.Tensor:
        parts = x.reshape(batch, channels, height // block, block, width // block, block)
        return parts.permute(0, 3, 5, 1, 2, 4).reshape(
            batch, channels * block**2, height // block, width // block
        )

    return Call(compute, [node.operand(0)])


def _shape(node: Node) -> Value:
    shape = node.shape()
    start, end = node.attr_int("start", 0), node.attr_int("end", len(shape))
    return Constant(np.asarray(shape[start:end], np.int64))


def _size(node: Node) -> Value:
    return Constant(np.asarray(math.prod(node.shape()), np.int64))


def _constant_of_shape(node: Node) -> Value:
    from onnx import numpy_helper

    shape, value = node.integers(0), node.attribute("value", None)
    fill = np.zeros(1, np.float32) if value is None else numpy_helper.to_array(value)
    return Constant(np.full(shape or (), fill.reshape(()), fill.dtype))


def _range(node: Node) -> Value:
    start, limit, delta = (node.constant(k) for k in range(3))
    assert start is not None, node.name
    assert limit is not None, node.name
    assert delta is not None, node.name
    return Constant(np.arange(start.item(), limit.item(), delta.item()).astype(start.dtype))


def _einsum(node: Node) -> Call:
    equation = node.attr_text("equation", "")
    return Call(lambda *xs: torch.einsum(equation, *xs), node.operands())


def _trilu(node: Node) -> Call:
    diagonal = int(node.number(1) or 0)
    function: Callable[..., torch.Tensor] = torch.triu if node.attr_int("upper", 1) else torch.tril
    return Call(lambda x: function(x, diagonal), [node.operand(0)])


def _eye_like(node: Node) -> Value:
    rows, columns = node.shape()
    dtype = torch_dtype(node.attr_int("dtype", 1), f"{node.op_type} at node {node.name!r}")
    return Constant(np.eye(rows, columns, node.attr_int("k", 0), str(dtype).removeprefix("torch.")))


CONVERTERS: dict[str, Any] = {
    "Concat": _concat,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Einsum": _einsum,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _unsqueeze,
}
