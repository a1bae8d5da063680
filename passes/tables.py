"""A chain of element-wise operators on one 8-bit tensor, evaluated for all its 256 values."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Constant

from qcompiler.passes.graph import array, dims, op_name
from qcompiler.passes.quantized import Affine, dequantized

Reals = NDArray[np.float64]

_erf = np.vectorize(math.erf, otypes=[np.float64])


def _sigmoid(x: Reals) -> Reals:
    return 1.0 / (1.0 + np.exp(-x))


def _gelu_tanh(x: Reals) -> Reals:
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


def _clip(x: Reals, call: relax.Call) -> Reals:
    return np.clip(x, number(call.args[1]), number(call.args[2]))


_UNARY: dict[str, Callable[[Reals, relax.Call], Reals]] = {
    "relax.nn.relu": lambda x, _: np.maximum(x, 0.0),
    "relax.nn.silu": lambda x, _: x * _sigmoid(x),
    "relax.nn.gelu": lambda x, _: 0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))),
    "relax.nn.gelu_tanh": lambda x, _: _gelu_tanh(x),
    "relax.nn.leakyrelu": lambda x, c: np.where(x >= 0, x, float(c.attrs.alpha) * x),
    "relax.nn.softplus": lambda x, c: np.where(
        x * float(c.attrs.beta) > float(c.attrs.threshold),
        x,
        np.log1p(np.exp(np.minimum(x * float(c.attrs.beta), 700.0))) / float(c.attrs.beta),
    ),
    "relax.clip": _clip,
    "relax.sigmoid": lambda x, _: _sigmoid(x),
    "relax.tanh": lambda x, _: np.tanh(x),
    "relax.exp": lambda x, _: np.exp(x),
    "relax.log": lambda x, _: np.log(x),
    "relax.sqrt": lambda x, _: np.sqrt(x),
    "relax.rsqrt": lambda x, _: 1.0 / np.sqrt(x),
    "relax.abs": lambda x, _: np.abs(x),
    "relax.negative": lambda x, _: -x,
    "relax.square": lambda x, _: x * x,
    "relax.erf": lambda x, _: _erf(x),
    "relax.floor": lambda x, _: np.floor(x),
    "relax.ceil": lambda x, _: np.ceil(x),
    "relax.sign": lambda x, _: np.sign(x),
    "relax.sin": lambda x, _: np.sin(x),
    "relax.cos": lambda x, _: np.cos(x),
}

_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    "relax.add": np.add,
    "relax.subtract": np.subtract,
    "relax.multiply": np.multiply,
    "relax.divide": np.divide,
    "relax.maximum": np.maximum,
    "relax.minimum": np.minimum,
    "relax.power": np.power,
}


def number(expr: relax.Expr) -> float:
    """A scalar constant or primitive value."""
    if isinstance(expr, Constant) and hasattr(expr.value, "numpy"):
        return float(array(expr).reshape(()))
    inner = getattr(expr, "value", expr)
    return float(getattr(inner, "value", inner))


class Chain:
    """The chain that ends in ``root``, if it is one.

    Attributes:
        source: the uint8 tensor that everything is computed from, or None.
        affine: its parameters.
        length: operators in the chain.
    """

    def __init__(self, root: relax.Expr, definition: Callable[[relax.Expr], relax.Expr]) -> None:
        self.source: relax.Expr | None = None
        self.affine: Affine | None = None
        self.length = 0
        self._definition = definition
        self._shape = dims(root)
        self._values: dict[relax.Expr, Reals] = {}
        self.outputs: Reals | None = self._evaluate(root)

    def table(self, out: Affine) -> NDArray[np.uint8] | None:
        """The table of the chain quantized to ``out``, or None where it is no chain or a value is not finite."""
        if self.outputs is None or self.source is None or not np.isfinite(self.outputs).all():
            return None
        table: NDArray[np.uint8] = np.clip(np.rint(self.outputs / out.scale) + out.zero_point, 0, 255).astype(
            np.uint8
        )
        return table

    def _evaluate(self, expr: relax.Expr) -> Reals | None:
        if expr in self._values:
            return self._values[expr]
        result = self._computed(expr)
        if result is not None:
            self._values[expr] = result
        return result

    def _computed(self, expr: relax.Expr) -> Reals | None:
        if isinstance(expr, Constant):
            values = array(expr)
            return np.asarray(values.reshape(()), np.float64) if values.size == 1 else None
        bound = self._definition(expr)
        if not isinstance(bound, relax.Call) or dims(bound) != self._shape:
            return None
        source = dequantized(bound)
        if source is not None:
            if self.source is not None and (not self.source.same_as(source[0]) or self.affine != source[1]):
                return None
            self.source, self.affine = source
            return self.affine.scale * (np.arange(256, dtype=np.float64) - self.affine.zero_point)
        name = op_name(bound)
        self.length += 1
        with np.errstate(all="ignore"):  # values that are not finite are refused in table()
            if name in _UNARY:
                x = self._evaluate(bound.args[0])
                return None if x is None else _UNARY[name](x, bound)
            if name in _BINARY:
                a, b = self._evaluate(bound.args[0]), self._evaluate(bound.args[1])
                return None if a is None or b is None else _BINARY[name](a, b)
        return None
