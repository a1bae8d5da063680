"""A small QDQ network: convolution, relu, max pool, residual sum, global average, linear layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_models
from onnx import helper

Array = np.ndarray[Any, Any]

SHAPE = (2, 3, 8, 8)

OUTPUT_SCALE = 0.02


@dataclass(frozen=True)
class Style:
    """How the network is quantized.

    Attributes:
        activation: dtype of activations; uint8 with a zero point of its own, or int8 with one 128 lower.
        weight: dtype of weights.
        weight_zero_point: of all weights.
        per_channel: weights have one scale an output channel.
        int_bias: biases are int32 behind a DequantizeLinear.
        clipped: relu is a node; else the range of the quantization is all that is left of it.
        matmul: the linear layer is a MatMul and an Add.
    """

    activation: Any = np.uint8
    weight: Any = np.int8
    weight_zero_point: int = 0
    per_channel: bool = True
    int_bias: bool = True
    clipped: bool = True
    matmul: bool = False


def network(style: Style, seed: int = 0) -> onnx.ModelProto:
    """The network; its input ``x`` has shape :data:`SHAPE`, its output ``y`` is ``[2, 5]``."""
    return _Builder(style, seed).model()


def images(seed: int = 1) -> Array:
    return np.random.default_rng(seed).standard_normal(SHAPE).astype(np.float32)


class _Builder:
    def __init__(self, style: Style, seed: int) -> None:
        self.style = style
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def model(self) -> onnx.ModelProto:
        x = self.quantized("x", 0.03, 128)
        stem = self.conv(x, "stem", (8, 3, 3, 3), 0.03)
        if self.style.clipped:
            stem = self.node("Relu", [stem], "relu")
        stem = self.quantized(stem, 0.05, 0)
        pooled = self.node("MaxPool", [stem], "pool", kernel_shape=[2, 2], strides=[2, 2])
        pooled = self.quantized(pooled, 0.05, 0)
        body = self.quantized(self.conv(pooled, "body", (8, 8, 3, 3), 0.05), 0.08, 120)
        total = self.quantized(self.node("Add", [body, pooled], "add"), 0.09, 110)
        mean = self.quantized(self.node("GlobalAveragePool", [total], "mean"), 0.04, 100)
        flat = self.node("Flatten", [mean], "flat")
        y = self.quantized(self.linear(flat, 0.04), OUTPUT_SCALE, 128)
        self.nodes.append(helper.make_node("Identity", [y], ["y"], "last"))
        return onnx_models.model(self.nodes, {"x": ["batch", *SHAPE[1:]]}, ["y"], self.constants)

    def node(self, operator: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def constant(self, name: str, array: Array) -> str:
        self.constants[name] = array
        return name

    def quantized(self, source: str, scale: float, zero_point: int) -> str:
        """Behind QuantizeLinear and DequantizeLinear; ``zero_point`` as of uint8."""
        dtype = np.dtype(self.style.activation)
        zero = zero_point - (128 if dtype == np.int8 else 0)
        s = self.constant(f"{source}_scale", np.float32(scale).reshape(()))
        z = self.constant(f"{source}_zero", np.asarray(zero, dtype))
        q = self.node("QuantizeLinear", [source, s, z], f"{source}_q")
        return self.node("DequantizeLinear", [q, s, z], f"{source}_dq")

    def weight(self, name: str, shape: tuple[int, ...], axis: int) -> tuple[str, Array]:
        """A weight behind DequantizeLinear, and its scales."""
        style, channels = self.style, shape[axis]
        low, high = (-127, 127) if style.weight_zero_point in (0, 128) else (-100, 155)
        values = self.rng.integers(low, high + 1, shape) + style.weight_zero_point
        info = np.iinfo(style.weight)
        w = self.constant(f"{name}_w", np.clip(values, info.min, info.max).astype(style.weight))
        count = channels if style.per_channel else 1
        scale = (self.rng.uniform(0.5, 1.5, count) / 1000).astype(np.float32)
        scale = scale if style.per_channel else scale.reshape(())
        zero = np.full(scale.shape, style.weight_zero_point, style.weight)
        operands = [w, self.constant(f"{name}_s", scale), self.constant(f"{name}_z", zero)]
        attributes = {"axis": axis} if style.per_channel else {}
        return self.node("DequantizeLinear", operands, f"{name}_w_dq", **attributes), scale

    def bias(self, name: str, channels: int, scale: Array) -> str:
        values = self.rng.integers(-3000, 3000, channels).astype(np.int32)
        unit = np.broadcast_to(scale, channels).astype(np.float32)
        if not self.style.int_bias:
            return self.constant(f"{name}_b", (values * unit).astype(np.float32))
        operands = [self.constant(f"{name}_b", values), self.constant(f"{name}_bs", unit.copy())]
        operands.append(self.constant(f"{name}_bz", np.zeros(channels, np.int32)))
        return self.node("DequantizeLinear", operands, f"{name}_b_dq", axis=0)

    def conv(self, x: str, name: str, shape: tuple[int, ...], scale: float) -> str:
        w, scales = self.weight(name, shape, 0)
        b = self.bias(name, shape[0], scales * np.float32(scale))
        return self.node("Conv", [x, w, b], name, pads=[1, 1, 1, 1])

    def linear(self, x: str, scale: float) -> str:
        if self.style.matmul:
            w, scales = self.weight("linear", (8, 5), 1)
            product = self.node("MatMul", [x, w], "linear")
            bias = self.constant("linear_b", self.rng.standard_normal(5).astype(np.float32))
            return self.node("Add", [product, bias], "linear_sum")
        w, scales = self.weight("linear", (5, 8), 0)
        b = self.bias("linear", 5, scales * np.float32(scale))
        return self.node("Gemm", [x, w, b], "linear", transB=1)
