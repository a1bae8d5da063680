"""Pooling and resizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from qcompiler.frontend.onnx.layers import torch_pads, window
from qcompiler.frontend.onnx.node import Call, Node, as_tensor

_MAX: dict[int, Callable[..., torch.Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Callable[..., torch.Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class _Window:
    """A pooling node's window, and the extents of its result."""

    def __init__(self, node: Node) -> None:
        self.spatial = node.rank() - 2
        kernel = node.attr_ints("kernel_shape", None)
        if kernel is None or self.spatial not in _MAX or len(kernel) != self.spatial:
            node.refuse(f"its kernel_shape is {kernel} on {self.spatial} spatial dimensions; known: 1, 2, 3")
        self.kernel = kernel
        self.strides, self.dilations, self.before, self.after = window(node, self.spatial, kernel)
        self.sizes = node.shape()[2:]
        self.ceil = bool(node.attr_int("ceil_mode", 0))
        self.outputs = [
            self._extent(k, self.before[k], self.after[k], self.ceil) for k in range(self.spatial)
        ]

    def _extent(self, k: int, before: int, after: int, ceil: bool) -> int:
        span = self.dilations[k] * (self.kernel[k] - 1) + 1
        steps = (self.sizes[k] + before + after - span) / self.strides[k]
        outputs = (math.ceil(steps) if ceil else math.floor(steps)) + 1
        # A last window that would begin in the padding behind is no window.
        if ceil and (outputs - 1) * self.strides[k] >= self.sizes[k] + before:
            outputs -= 1
        return outputs

    def as_torch(self) -> bool | None:
        """``ceil_mode`` of a torch pooling with padding ``before`` on both sides that is the same; None if none is."""
        if any(b > k // 2 for b, k in zip(self.before, self.kernel, strict=True)):
            return None
        for ceil in (False, True):
            extents = [self._extent(k, self.before[k], self.before[k], ceil) for k in range(self.spatial)]
            if extents == self.outputs:
                return ceil
        return None

    def padding(self) -> list[int]:
        """Padding for :func:`torch.nn.functional.pad` with which every window is whole."""
        after = []
        for k in range(self.spatial):
            span = self.dilations[k] * (self.kernel[k] - 1) + 1
            needed = (self.outputs[k] - 1) * self.strides[k] + span - self.sizes[k] - self.before[k]
            after.append(max(needed, 0))
        return torch_pads(self.before, after)

    def counts(self, padding_counts: bool) -> NDArray[np.float32]:
        """How many positions of each window count: ``[OH, OW]`` and the like."""
        axes = []
        for k in range(self.spatial):
            starts = np.arange(self.outputs[k]) * self.strides[k] - self.before[k]
            places = starts[:, None] + np.arange(self.kernel[k]) * self.dilations[k]
            low, high = (
                (-self.before[k], self.sizes[k] + self.after[k]) if padding_counts else (0, self.sizes[k])
            )
            axes.append(((places >= low) & (places < high)).sum(axis=1))
        result = axes[0]
        for axis in axes[1:]:
            result = result[..., None] * axis
        counts: NDArray[np.float32] = result.astype(np.float32)
        return counts


def _max_pool(node: Node) -> Call:
    if len(node.outputs) > 1 and node.outputs[1]:
        node.refuse("its indices are used; only the first result is known")
    w = _Window(node)
    pool = _MAX[w.spatial]
    ceil = w.as_torch()
    if ceil is not None:
        return Call(lambda x: pool(x, w.kernel, w.strides, w.before, w.dilations, ceil), [node.operand(0)])
    pads = w.padding()

    def compute(x: torch.Tensor) -> torch.Tensor:
        return pool(F.pad(x, pads, value=-math.inf), w.kernel, w.strides, 0, w.dilations)

    return Call(compute, [node.operand(0)])


def _average_pool(node: Node) -> Call:
    w = _Window(node)
    pool = _AVERAGE[w.spatial]
    include = bool(node.attr_int("count_include_pad", 0))
    if any(d != 1 for d in w.dilations):
        node.refuse(f"its dilations are {w.dilations}; known are averages of neighbours")
    ceil = w.as_torch()
    same_divisors = w.before == w.after or not (include and any((*w.before, *w.after)))
    if ceil is not None and same_divisors:
        return Call(lambda x: pool(x, w.kernel, w.strides, w.before, ceil, include), [node.operand(0)])
    pads = w.padding()
    factor = as_tensor(np.float32(math.prod(w.kernel)) / w.counts(include))
    return Call(lambda x, f: pool(F.pad(x, pads), w.kernel, w.strides) * f, [node.operand(0), factor])


def _global_average(node: Node) -> Call:
    if node.rank() == 4:
        return Call(lambda x: F.adaptive_avg_pool2d(x, (1, 1)), [node.operand(0)])
    axes = list(range(2, node.rank()))
    return Call(lambda x: x.mean(axes, keepdim=True), [node.operand(0)])


def _global_max(node: Node) -> Call:
    if node.rank() == 4:
        size = list(node.shape()[2:])
        return Call(lambda x: F.max_pool2d(x, size), [node.operand(0)])
    axes = list(range(2, node.rank()))
    return Call(lambda x: torch.amax(x, axes, keepdim=True), [node.operand(0)])


# Resizing


def _resize(node: Node) -> Call:
    shape = node.shape()
    if node.op_type == "Upsample":
        scales = node.attribute("scales", None) if node.opset < 9 else node.constant(1)
        sizes = None
    elif node.opset < 11:
        scales, sizes = node.constant(1), None
    else:
        scales, sizes = (node.constant(k) if node.has(k) else None for k in (2, 3))
    axes = node.attr_ints("axes", None) or list(range(len(shape)))
    out = list(shape)
    factors = [1.0] * len(shape)
    if sizes is not None and sizes.size:
        for axis, size in zip(axes, sizes, strict=True):
            out[axis], factors[axis] = int(size), int(size) / shape[axis]
    elif scales is not None and len(scales):
        for axis, scale in zip(axes, scales, strict=True):
            out[axis], factors[axis] = math.floor(shape[axis] * float(scale)), float(scale)
    else:
        node.refuse("neither scales nor sizes are given")
    if node.attr_text("keep_aspect_ratio_policy", "stretch") != "stretch" or node.attr_int("antialias", 0):
        node.refuse("keep_aspect_ratio_policy and antialias are not known; give exact sizes")
    legacy = node.op_type == "Upsample" or node.opset < 11
    coordinates = node.attr_text("coordinate_transformation_mode", "asymmetric" if legacy else "half_pixel")
    mode = node.attr_text("mode", "nearest")
    if mode == "nearest":
        rounding = node.attr_text("nearest_mode", "floor" if legacy else "round_prefer_floor")
        return _nearest(node, out, factors, coordinates, rounding)
    return _interpolated(node, mode, out, factors, coordinates)


_ROUNDINGS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
}


def _nearest(
    node: Node, out: Sequence[int], factors: Sequence[float], coordinates: str, rounding: str
) -> Call:
    """Nearest neighbours, by their indices; as torch's own operator where that chooses the same."""
    shape = node.shape()
    if rounding not in _ROUNDINGS:
        node.refuse(f"its nearest_mode is {rounding!r}; known: {', '.join(_ROUNDINGS)}")
    chosen = [
        np.clip(
            _ROUNDINGS[rounding](_coordinates(node, out[k], shape[k], factors[k], coordinates)),
            0,
            shape[k] - 1,
        )
        for k in range(len(shape))
    ]
    torchs = [np.arange(out[k]) * shape[k] // out[k] for k in range(len(shape))]
    as_torch = all(np.array_equal(a, b) for a, b in zip(chosen, torchs, strict=True))
    if len(shape) == 4 and as_torch and list(out[:2]) == list(shape[:2]):
        size = list(out[2:])
        return Call(lambda x: F.interpolate(x, size, mode="nearest"), [node.operand(0)])
    moved = [k for k in range(len(shape)) if not np.array_equal(chosen[k], np.arange(shape[k]))]
    indices = [torch.from_numpy(chosen[k].astype(np.int64)) for k in moved]

    def compute(x: torch.Tensor, *indices: torch.Tensor) -> torch.Tensor:
        for axis, index in zip(moved, indices, strict=True):
            x = torch.index_select(x, axis, index)
        return x

    return Call(compute, [node.operand(0), *indices])


def _coordinates(node: Node, out: int, size: int, factor: float, mode: str) -> NDArray[np.float64]:
    """Where each position of the output lies in the input."""
    x = np.arange(out, dtype=np.float64)
    if mode == "asymmetric":
        return x / factor
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and out > 1):
        return (x + 0.5) / factor - 0.5
    if mode == "pytorch_half_pixel":
        return np.zeros(1)
    if mode == "align_corners":
        return x * (size - 1) / (out - 1) if out > 1 else np.zeros(1)
    node.refuse(
        f"its coordinate_transformation_mode is {mode!r}; known: half_pixel, pytorch_half_pixel, asymmetric, "
        "align_corners"
    )


def _interpolated(
    node: Node, mode: str, out: Sequence[int], factors: Sequence[float], coordinates: str
) -> Call:
    shape = node.shape()
    torch_mode = {("linear", 3): "linear", ("linear", 4): "bilinear", ("cubic", 4): "bicubic"}.get(
        (mode, len(shape))
    )
    if torch_mode is None or list(out[:2]) != list(shape[:2]):
        node.refuse(
            f"mode {mode!r} on a tensor of {len(shape)} dimensions is not known; known: linear and cubic over space"
        )
    if mode == "cubic" and (
        node.attr_float("cubic_coeff_a", -0.75) != -0.75 or node.attr_int("exclude_outside", 0)
    ):
        node.refuse("it differs from the usual cubic in cubic_coeff_a or exclude_outside")
    for k in range(2, len(shape)):
        # torch takes the ratio of the extents, ONNX the factor that is given.
        if coordinates != "align_corners" and not math.isclose(out[k], shape[k] * factors[k], rel_tol=1e-6):
            node.refuse(f"its scale {factors[k]} of axis {k} gives no whole extent; give sizes")
    size = list(out[2:])
    if coordinates == "align_corners":
        return Call(lambda x: F.interpolate(x, size, mode=torch_mode, align_corners=True), [node.operand(0)])
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and min(size) > 1):
        return Call(lambda x: F.interpolate(x, size, mode=torch_mode, align_corners=False), [node.operand(0)])
    node.refuse(
        f"mode {mode!r} with coordinate_transformation_mode {coordinates!r} is not known; known: half_pixel, align_corners"
    )


CONVERTERS: dict[str, Any] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "MaxPool": _max_pool,
    "Resize": _resize,
    "Upsample": _resize,
}
