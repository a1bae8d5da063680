"""Convolutions, matrix products and normalizations."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from qcompiler.frontend.onnx.node import Call, Node, Operand, Runtime, as_tensor
from qcompiler.frontend.onnx.weights import QuantizedConstant, symmetric

log = logging.getLogger(__name__)

_NOTEWORTHY = 0.01
"""Steps; a weight that changes by less is what it was but for the rounding of float64."""


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return F.linear(x, weight, bias)


def _layer(
    node: Node,
    compute: Callable[..., torch.Tensor],
    x: Operand,
    weight: QuantizedConstant | Operand,
    bias: Operand | None,
) -> Call:
    """``compute(x, weight, bias)``, the weight dequantized in the same module if it is quantized."""
    rest = [] if bias is None else [bias]
    if not isinstance(weight, QuantizedConstant):
        return Call(compute, [x, weight, *rest])
    found = symmetric(weight)
    if found is None:
        log.warning(
            "%s at node %r: its weights have scales along axis %s, and integer kernels take one an output channel; it "
            "stays in float: quantize along the axis of output channels", node.op_type, node.name, weight.axis,
        )  # fmt: skip
        return Call(compute, [x, as_tensor(weight.array), *rest])
    if found.rounded > _NOTEWORTHY:
        log.warning(
            "%s at node %r: its weights are not symmetric int8 in [-127, 127]; they are rounded anew, by up to %.2f of "
            "their steps: quantize with symmetric int8 weights to keep them", node.op_type, node.name, found.rounded,
        )  # fmt: skip
    values, scale = torch.from_numpy(found.values), torch.from_numpy(found.scale)
    zero_points = torch.zeros(len(found.scale), dtype=torch.int64)

    def quantized(
        x: torch.Tensor,
        values: torch.Tensor,
        scale: torch.Tensor,
        zero_points: torch.Tensor,
        *bias: torch.Tensor,
    ) -> torch.Tensor:
        real = torch.ops.quantized_decomposed.dequantize_per_channel.default(
            values, scale, zero_points, 0, -128, 127, torch.int8
        )
        return compute(x, real, *bias)

    return Call(quantized, [x, values, scale, zero_points, *rest])


def _weight(node: Node, position: int) -> QuantizedConstant | Operand:
    value = node.value(position)
    if isinstance(value, QuantizedConstant):
        if value.values.dtype in (np.dtype(np.int8), np.dtype(np.uint8)):
            return value
        node.refuse(f"its weights are {value.values.dtype}; quantized weights are int8 or uint8")
    return node.operand(position)


def _bias(node: Node, position: int) -> Operand | None:
    return node.operand(position) if node.has(position) else None


def window(
    node: Node, spatial: int, kernel: Sequence[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and the padding before and after each axis of a sliding window."""
    strides = node.attr_ints("strides", [1] * spatial) or []
    dilations = node.attr_ints("dilations", [1] * spatial) or []
    pads = node.attr_ints("pads", [0] * 2 * spatial) or []
    before, after = pads[:spatial], pads[spatial:]
    auto = node.attr_text("auto_pad", "NOTSET")
    if auto == "VALID":
        before = after = [0] * spatial
    elif auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, k, stride, dilation in zip(node.shape()[2:], kernel, strides, dilations, strict=True):
            total = max((-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size, 0)
            less, more = total // 2, total - total // 2
            before.append(less if auto == "SAME_UPPER" else more)
            after.append(more if auto == "SAME_UPPER" else less)
    elif auto != "NOTSET":
        node.refuse(f"auto_pad is {auto!r}; known: NOTSET, VALID, SAME_UPPER, SAME_LOWER")
    return strides, dilations, before, after


def torch_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Paddings as ``torch.nn.functional.pad`` takes them: the last axis first."""
    return [p for pair in zip(reversed(before), reversed(after), strict=True) for p in pair]


_CONVOLUTIONS: dict[int, Callable[..., torch.Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _spatial(node: Node) -> int:
    spatial = node.rank(1) - 2
    if spatial not in _CONVOLUTIONS:
        node.refuse(f"it works on {spatial} spatial dimensions; known: 1, 2, 3")
    return spatial


def _conv(node: Node) -> Call:
    spatial = _spatial(node)
    strides, dilations, before, after = window(node, spatial, node.shape(1)[2:])
    both = [min(b, a) for b, a in zip(before, after, strict=True)]
    rest = torch_pads(
        [b - s for b, s in zip(before, both, strict=True)], [a - s for a, s in zip(after, both, strict=True)]
    )
    convolve = functools.partial(
        _CONVOLUTIONS[spatial],
        stride=strides,
        padding=both,
        dilation=dilations,
        groups=node.attr_int("group", 1),
    )

    def compute(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return convolve(F.pad(x, rest) if any(rest) else x, weight, bias)

    return _layer(node, compute, node.operand(0), _weight(node, 1), _bias(node, 2))


def _conv_transpose(node: Node) -> Call:
    spatial = _spatial(node)
    if node.attr_text("auto_pad", "NOTSET") != "NOTSET" or node.attr_ints("output_shape", None) is not None:
        node.refuse("auto_pad and output_shape are not known; give pads and output_padding")
    strides, dilations, before, after = window(node, spatial, node.shape(1)[2:])
    if before != after:
        node.refuse(f"its pads {before} and {after} differ; known are equal ones")
    functions: dict[int, Callable[..., torch.Tensor]] = {
        1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d,
    }  # fmt: skip
    convolve = functools.partial(
        functions[spatial], stride=strides, padding=before, dilation=dilations, groups=node.attr_int("group", 1),
        output_padding=node.attr_ints("output_padding", [0] * spatial),
    )  # fmt: skip
    operands = [node.operand(k) for k in range(3) if node.has(k)]
    return Call(lambda x, w, b=None: convolve(x, w, b), operands)


def _gemm(node: Node) -> Call:
    """``alpha * A B + beta * C``, a linear layer where B is constant."""
    alpha, beta = node.attr_float("alpha", 1.0), node.attr_float("beta", 1.0)
    weight = _weight(node, 1)
    transposed = bool(node.attr_int("transB", 0))
    x = node.operand(0)
    if isinstance(weight, Runtime):
        return _general_gemm(node, x, weight, alpha, beta, transposed)
    if isinstance(weight, QuantizedConstant):
        weight = weight if transposed else weight.transposed([1, 0])
        weight = weight.scaled(alpha) if alpha != 1.0 else weight
        channels = weight.values.shape[0]
    else:
        weight = weight if transposed else weight.t().contiguous()
        weight = weight * alpha if alpha != 1.0 else weight
        channels = weight.shape[0]
    bias = None
    if node.has(2):
        array = node.constant(2) if node.is_constant(2) else None
        # One number a channel; anything else that broadcasts is an addition of its own.
        if array is None or array.size not in (1, channels) or array.size != np.prod(array.shape[-1:]):
            return _general_gemm(node, x, node.operand(1), alpha, beta, transposed)
        values = np.broadcast_to(array.reshape(-1).astype(np.float64) * beta, channels)
        bias = as_tensor(values.astype(np.float32))
    if node.attr_int("transA", 0):
        return _layer(node, lambda x, *rest: linear(x.t(), *rest), x, weight, bias)
    return _layer(node, linear, x, weight, bias)


def _general_gemm(
    node: Node, x: Operand, weight: Operand, alpha: float, beta: float, transposed: bool
) -> Call:
    first_transposed = bool(node.attr_int("transA", 0))

    def compute(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        product = torch.matmul(a.t() if first_transposed else a, b.t() if transposed else b)
        product = product * alpha if alpha != 1.0 else product
        if c is None:
            return product
        return product + (c * beta if beta != 1.0 else c)

    return Call(compute, [x, weight, *([node.operand(2)] if node.has(2) else [])])


def _matmul(node: Node) -> Call:
    weight = _weight(node, 1)
    if node.is_constant(0) or node.rank(1) != 2 or node.rank(0) < 2 or isinstance(weight, Runtime):
        return Call(torch.matmul, [node.operand(0), node.operand(1)])
    if isinstance(weight, QuantizedConstant):
        return replace(
            _layer(node, linear, node.operand(0), weight.transposed([1, 0]), None), takes_bias=True
        )
    return Call(linear, [node.operand(0), weight.t().contiguous()], takes_bias=True)


def _batch_norm(node: Node) -> Call:
    if node.attr_int("training_mode", 0):
        node.refuse("it is in training mode; export the model for inference")
    epsilon = node.attr_float("epsilon", 1e-5)

    def compute(x: torch.Tensor, *p: torch.Tensor) -> torch.Tensor:
        weight, bias, mean, variance = p
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, epsilon)

    return Call(compute, node.operands(), outputs=tuple(node.outputs[:1]))


def _layer_norm(node: Node) -> Call:
    shape = node.shape()[node.axis(-1) :]
    epsilon = node.attr_float("epsilon", 1e-5)

    def compute(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        bias = None if bias is None else bias.reshape(shape)
        return F.layer_norm(x, shape, weight.reshape(shape), bias, epsilon)

    return Call(compute, node.operands(), outputs=tuple(node.outputs[:1]))


def _rms_norm(node: Node) -> Call:
    shape = node.shape()[node.axis(-1) :]
    axes = list(range(-len(shape), 0))
    epsilon = node.attr_float("epsilon", 1e-5)

    def compute(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt((x * x).mean(axes, keepdim=True) + epsilon) * weight

    return Call(compute, node.operands())


def _group_norm(groups: Callable[[Node], int]) -> Callable[[Node], Call]:
    def convert(node: Node) -> Call:
        count, channels = groups(node), node.shape()[1]
        epsilon = node.attr_float("epsilon", 1e-5)
        if node.shape(1) not in ((channels,), (count,)):
            node.refuse(f"its scale has shape {list(node.shape(1))}; known: [{channels}] or [{count}]")

        def a_channel(p: torch.Tensor) -> torch.Tensor:
            return p if p.shape[0] == channels else p.repeat_interleave(channels // count)

        def compute(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
            return F.group_norm(x, count, a_channel(weight), a_channel(bias), epsilon)

        return Call(compute, node.operands())

    return convert


def _local_response_norm(node: Node) -> Call:
    size, channels = node.attr_int("size", 1), node.shape()[1]
    alpha, beta, bias = (node.attr_float(*p) for p in (("alpha", 1e-4), ("beta", 0.75), ("bias", 1.0)))
    pads = [*[0, 0] * (node.rank() - 2), (size - 1) // 2, size // 2]

    def compute(x: torch.Tensor) -> torch.Tensor:
        squares = F.pad(x * x, pads)
        total = sum(squares[:, k : k + channels] for k in range(size))
        result: torch.Tensor = x / (bias + alpha / size * total) ** beta
        return result

    return Call(compute, [node.operand(0)])


CONVERTERS: dict[str, Any] = {
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm(lambda node: node.attr_int("num_groups", 1)),
    "InstanceNormalization": _group_norm(lambda node: node.shape()[1]),
    "LRN": _local_response_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": _matmul,
    "RMSNormalization": _rms_norm,
}
