"""Operators that work on every element alone, and those that choose, compare or normalize along an axis."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from qcompiler.frontend.onnx.node import Call, Constant, Node, Runtime, Value, torch_dtype
from qcompiler.frontend.onnx.weights import QuantizedConstant

Function = Callable[..., torch.Tensor]


def _unary(function: Function) -> Callable[[Node], Call]:
    return lambda node: Call(function, [node.operand(0)])


def _binary(function: Function) -> Callable[[Node], Call]:
    """``function(a, b)``; a constant of one element is a number, so that the other's shape and dtype count."""

    def convert(node: Node) -> Call:
        for position in (0, 1):
            other = node.value(1 - position)
            array = node.constant(position) if node.is_constant(position) else None
            if array is None or array.size != 1 or array.ndim > node.rank(1 - position):
                continue
            if not isinstance(other, Runtime) or array.dtype.kind not in "fi":
                continue
            number = array.reshape(()).item()
            if position == 1:
                return Call(lambda x, n=number: function(x, n), [other])
            if function in _COMMUTATIVE:
                return Call(lambda x, n=number: function(x, n), [other])
        return Call(function, [node.operand(0), node.operand(1)])

    return convert


def _divide(a: Any, b: Any) -> torch.Tensor:
    whole = all(
        not (x.is_floating_point() if isinstance(x, torch.Tensor) else isinstance(x, float)) for x in (a, b)
    )
    return torch.div(a, b, rounding_mode="trunc") if whole else torch.div(a, b)


_COMMUTATIVE = frozenset({torch.add, torch.mul})


def _folded(function: Function, node: Node) -> Call:
    """``function`` of the first two inputs, then of the result and the next, and so on."""
    return Call(lambda *xs: functools.reduce(function, xs), node.operands())


def _mean(node: Node) -> Call:
    operands = node.operands()
    return Call(lambda *xs: functools.reduce(torch.add, xs) / len(xs), operands)


def _clip(node: Node) -> Call:
    if node.opset < 11:
        low: float | None = node.attr_float("min", -math.inf)
        high: float | None = node.attr_float("max", math.inf)
    else:
        low, high = node.number(1), node.number(2)
    low = None if low is None or low <= np.finfo(np.float32).min else low
    high = None if high is None or high >= np.finfo(np.float32).max else high
    x = node.operand(0)
    if not (x.tensor if isinstance(x, Runtime) else x).is_floating_point():
        low, high = (None if v is None else int(v) for v in (low, high))
    if low is None and high is None:
        return Call(torch.clone, [x])
    if low == 0 and high is None:
        return Call(torch.relu, [x])
    return Call(lambda x: torch.clamp(x, low, high), [x])


def _hard_sigmoid(node: Node) -> Call:
    alpha, beta = node.attr_float("alpha", 0.2), node.attr_float("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return Call(F.hardsigmoid, [node.operand(0)])
    return Call(lambda x: torch.clamp(x * alpha + beta, 0.0, 1.0), [node.operand(0)])


def _gelu(node: Node) -> Call:
    approximate = node.attr_text("approximate", "none")
    return Call(lambda x: F.gelu(x, approximate=approximate), [node.operand(0)])


def _elu(node: Node) -> Call:
    alpha = node.attr_float("alpha", 1.0)
    return Call(lambda x: F.elu(x, alpha), [node.operand(0)])


def _celu(node: Node) -> Call:
    alpha = node.attr_float("alpha", 1.0)
    return Call(lambda x: F.celu(x, alpha), [node.operand(0)])


def _selu(node: Node) -> Call:
    alpha = node.attr_float("alpha", 1.6732632423543772)
    gamma = node.attr_float("gamma", 1.0507009873554805)
    return Call(lambda x: F.elu(x, alpha) * gamma, [node.operand(0)])


def _leaky_relu(node: Node) -> Call:
    slope = node.attr_float("alpha", 0.01)
    return Call(lambda x: F.leaky_relu(x, slope), [node.operand(0)])


def _prelu(node: Node) -> Call:
    array = node.constant(1) if node.is_constant(1) else None
    if array is not None and array.size == 1:
        slope = float(array.reshape(()))
        return Call(lambda x: F.leaky_relu(x, slope), [node.operand(0)])
    return Call(lambda x, slope: torch.where(x >= 0, x, x * slope), [node.operand(0), node.operand(1)])


def _thresholded_relu(node: Node) -> Call:
    alpha = node.attr_float("alpha", 1.0)
    return Call(lambda x: F.threshold(x, alpha, 0.0), [node.operand(0)])


def _swish(node: Node) -> Call:
    alpha = node.attr_float("alpha", 1.0)
    if alpha == 1.0:
        return Call(F.silu, [node.operand(0)])
    return Call(lambda x: x * torch.sigmoid(x * alpha), [node.operand(0)])


def _quick_gelu(node: Node) -> Call:
    alpha = node.attr_float("alpha", 1.702)
    return Call(lambda x: x * torch.sigmoid(x * alpha), [node.operand(0)])


def _power(node: Node) -> Call:
    exponent = node.number(1) if node.is_constant(1) and node.shape(1) in ((), (1,)) else None
    if exponent is None:
        return Call(torch.pow, [node.operand(0), node.operand(1)])
    return Call(lambda x: torch.pow(x, exponent), [node.operand(0)])


def _mod(node: Node) -> Call:
    function = torch.fmod if node.attr_int("fmod", 0) else torch.remainder
    return Call(function, [node.operand(0), node.operand(1)])


def _cast(node: Node) -> Call | Value:
    dtype = torch_dtype(node.attr_int("to", 1), f"{node.op_type} at node {node.name!r}")
    value = node.value(0)
    if isinstance(value, Runtime) and value.tensor.dtype == dtype and not value.shifted:
        return value
    if isinstance(value, QuantizedConstant) and dtype == torch.float32:
        return value
    return Call(lambda x: x.to(dtype), [node.operand(0)])


def _softmax(function: Function) -> Callable[[Node], Call]:
    def convert(node: Node) -> Call:
        shape = node.shape()
        if node.opset >= 13:
            axis = node.axis(-1)
            return Call(lambda x: function(x, axis), [node.operand(0)])
        axis = node.axis(1)
        if axis == len(shape) - 1:
            return Call(lambda x: function(x, -1), [node.operand(0)])
        # Up to opset 12, all axes from this one on are one.
        rows = math.prod(shape[:axis])
        return Call(lambda x: function(x.reshape(rows, -1), -1).reshape(shape), [node.operand(0)])

    return convert


def _identity(node: Node) -> Value:
    return node.value(0)


def _dropout(node: Node) -> Value:
    if node.has(2) and bool(node.number(2)):
        node.refuse("it is in training mode; export the model for inference")
    if len(node.outputs) > 1 and node.outputs[1]:
        node.refuse("its mask is used; only the first result is known")
    return node.value(0)


def _constant(node: Node) -> Value:
    from onnx import numpy_helper

    value = node.attribute("value", None)
    if value is not None:
        return Constant(numpy_helper.to_array(value))
    for name, dtype in (("value_float", np.float32), ("value_int", np.int64)):
        number = node.attribute(name, None)
        if number is not None:
            return Constant(np.asarray(number, dtype))
    for name, dtype in (("value_floats", np.float32), ("value_ints", np.int64)):
        numbers = node.attribute(name, None)
        if numbers is not None:
            return Constant(np.asarray(list(numbers), dtype))
    node.refuse("it holds neither a dense tensor nor numbers")


def _where(node: Node) -> Call:
    return Call(torch.where, [node.operand(0), node.operand(1), node.operand(2)])


def _bias_gelu(node: Node) -> Call:
    return Call(lambda x, b: F.gelu(x + b), [node.operand(0), node.operand(1)])


CONVERTERS: dict[str, Any] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(torch.add),
    "And": _binary(torch.logical_and),
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Celu": _celu,
    "Clip": _clip,
    "Constant": _constant,
    "Cos": _unary(torch.cos),
    "Div": _binary(_divide),
    "Dropout": _dropout,
    "Elu": _elu,
    "Equal": _binary(torch.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Greater": _binary(torch.gt),
    "GreaterOrEqual": _binary(torch.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(F.hardswish),
    "Identity": _identity,
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": _leaky_relu,
    "Less": _binary(torch.lt),
    "LessOrEqual": _binary(torch.le),
    "Log": _unary(torch.log),
    "LogSoftmax": _softmax(F.log_softmax),
    "Max": lambda node: _folded(torch.maximum, node),
    "Mean": _mean,
    "Min": lambda node: _folded(torch.minimum, node),
    "Mish": _unary(F.mish),
    "Mod": _mod,
    "Mul": _binary(torch.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(torch.logical_or),
    "PRelu": _prelu,
    "Pow": _power,
    "Reciprocal": _unary(lambda x: 1.0 / x),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Selu": _selu,
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softmax": _softmax(F.softmax),
    "Softplus": _unary(F.softplus),
    "Softsign": _unary(lambda x: x / (1.0 + torch.abs(x))),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(torch.sub),
    "Sum": lambda node: _folded(torch.add, node),
    "Swish": _swish,
    "Tanh": _unary(torch.tanh),
    "ThresholdedRelu": _thresholded_relu,
    "Where": _where,
    "Xor": _binary(torch.logical_xor),
    "com.microsoft.BiasGelu": _bias_gelu,
    "com.microsoft.Gelu": _unary(F.gelu),
    "com.microsoft.QuickGelu": _quick_gelu,
}
