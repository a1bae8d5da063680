"""QuantizeLinear and DequantizeLinear.

Activations are stored as uint8 whatever the file says: int8 with zero point z is uint8 with zero point z + 128, of the
same real numbers. So a model in S8S8 form is the same to the rest of the compiler as one in U8S8 form.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from numpy.typing import NDArray

from qcompiler.frontend.onnx.node import Call, Node, Runtime, Value, torch_dtype
from qcompiler.frontend.onnx.weights import QuantizedConstant

SHIFT = 128

Array = NDArray[Any]

_OPS = torch.ops.quantized_decomposed


def quantize(x: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """uint8 of float32 ``x``."""
    result: torch.Tensor = _OPS.quantize_per_tensor.default(x, scale, zero_point, 0, 255, torch.uint8)
    return result


def dequantize(q: torch.Tensor, scale: float, zero_point: int) -> torch.Tensor:
    """float32 of uint8 ``q``."""
    result: torch.Tensor = _OPS.dequantize_per_tensor.default(q, scale, zero_point, 0, 255, torch.uint8)
    return result


def _quantize_linear(node: Node) -> Call | Value:
    value = node.value(0)
    scale, zero_point = _parameters(node)
    if not isinstance(value, Runtime):
        return _quantized(node, value.array, scale, zero_point)
    _check_activation(node, scale, zero_point.dtype)
    signed = zero_point.dtype == np.int8
    zero = int(zero_point.reshape(())) + (SHIFT if signed else 0)
    function = functools.partial(quantize, scale=float(scale.reshape(())), zero_point=zero)
    return Call(function, [value], shifted=signed)


def _dequantize_linear(node: Node) -> Call | Value:
    value = node.value(0)
    if not isinstance(value, Runtime):
        if isinstance(value, QuantizedConstant):
            node.refuse("its input is dequantized already")
        scale, zero_point = _parameters(node, value.array.dtype)
        if value.array.dtype not in (np.dtype(np.int8), np.dtype(np.uint8), np.dtype(np.int32)):
            node.refuse(
                f"it dequantizes constants of {value.array.dtype}; known: int8 and uint8 (weights), int32 (biases); "
                "quantize with weight_type=QuantType.QInt8"
            )
        axis = None if scale.size == 1 else node.axis(1)
        if axis is not None and scale.size != value.array.shape[axis]:
            node.refuse(
                f"it has {scale.size} scales for {value.array.shape[axis]} positions of axis {axis}; scales of blocks "
                "have no integer kernel: quantize per channel or per tensor"
            )
        return QuantizedConstant(value.array, scale.reshape(-1), zero_point.reshape(-1), axis)
    dtype = np.dtype(np.int8) if value.shifted else np.dtype(str(value.tensor.dtype).removeprefix("torch."))
    scale, zero_point = _parameters(node, dtype)
    _check_activation(node, scale, dtype)
    signed = dtype == np.int8
    zero = int(zero_point.reshape(())) + (SHIFT if signed else 0)
    function = functools.partial(dequantize, scale=float(scale.reshape(())), zero_point=zero)
    if not signed or value.shifted:
        return Call(function, [value])
    return Call(lambda q: function(_shifted(q)), [value])


def _shifted(q: torch.Tensor) -> torch.Tensor:
    """uint8 from int8, 128 higher: an input of the model, or bytes that were moved in between."""
    return (q.to(torch.int16) + SHIFT).to(torch.uint8)


def _parameters(node: Node, dtype: Any = None) -> tuple[Array, Array]:
    """Scale and zero point; a missing zero point is 0, of ``dtype``, or of the node's output dtype."""
    scale, zero_point = node.constant(1), node.constant(2)
    assert scale is not None, node.name
    if not (np.isfinite(scale) & (scale > 0)).all():
        node.refuse(f"its scale is {scale.min()}; scales are positive numbers")
    if node.attr_int("block_size", 0):
        node.refuse("scales of blocks have no integer kernel: quantize per channel or per tensor")
    if zero_point is None:
        number = node.attr_int("output_dtype", 0)
        if dtype is None and number:
            dtype = np.dtype(str(torch_dtype(number, node.name)).removeprefix("torch."))
        zero_point = np.zeros(scale.shape, np.uint8 if dtype is None else dtype)
    return scale.astype(np.float32), zero_point


def _check_activation(node: Node, scale: Array, dtype: Any) -> None:
    if dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        node.refuse(
            f"it quantizes to {dtype}; activations of integer kernels have 8 bits: quantize with "
            "activation_type=QuantType.QUInt8 or QInt8"
        )
    if scale.size != 1:
        node.refuse(f"it has {scale.size} scales; activations have one: quantize activations per tensor")


def _quantized(node: Node, array: Array, scale: Array, zero_point: Array) -> Value:
    """A constant that the file quantizes when it runs, as exporters that keep float weights write it."""
    from qcompiler.frontend.onnx.node import Constant

    dtype = zero_point.dtype
    if dtype not in (np.dtype(np.int8), np.dtype(np.uint8)):
        node.refuse(f"it quantizes a constant to {dtype}; known: int8 and uint8")
    shape = [1] * array.ndim
    if scale.size > 1:
        shape[node.axis(1)] = scale.size
    steps = np.rint(array.astype(np.float32) / scale.reshape(shape)) + zero_point.astype(np.float32).reshape(
        shape
    )
    info = np.iinfo(dtype)
    return Constant(np.clip(steps, info.min, info.max).astype(dtype))


CONVERTERS = {
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "com.microsoft.QuantizeLinear": _quantize_linear,
    "com.microsoft.DequantizeLinear": _dequantize_linear,
}
