"""What the passes know about quantize and dequantize nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Constant

from qcompiler.passes.graph import array, constant, dtype, op_name


@dataclass(frozen=True)
class Affine:
    """``real = scale * (q - zero_point)`` with q in uint8."""

    scale: float
    zero_point: int

    def quantized(self, real: float) -> int:
        """The nearest q of a real number, as quantization of a float32 computes it."""
        if np.isinf(real):
            return 255 if real > 0 else 0
        inverse = np.float32(1.0 / self.scale)
        return int(np.clip(np.rint(np.float32(real) * inverse) + self.zero_point, 0, 255))


def per_tensor(call: relax.Call) -> Affine | None:
    """The parameters of a quantize or dequantize node of unsigned activations, if they are one scale and zero point."""
    scale, zero = call.args[1], call.args[2]
    if not isinstance(scale, Constant) or not isinstance(zero, Constant):
        return None
    scales, zeros = array(scale), array(zero)
    if scales.size != 1 or zeros.size != 1:
        return None
    return Affine(float(scales.reshape(())), int(zeros.reshape(())))


def quantize(x: relax.Expr, affine: Affine) -> relax.Call:
    return relax.op.quantize(x, *_constants(affine), axis=-1, out_dtype="uint8")


def dequantize(x: relax.Expr, affine: Affine) -> relax.Call:
    return relax.op.dequantize(x, *_constants(affine), axis=-1, out_dtype="float32")


def _constants(affine: Affine) -> tuple[relax.Expr, relax.Expr]:
    return constant(np.asarray(affine.scale, np.float32)), constant(np.asarray(affine.zero_point, np.int32))


def dequantized(expr: relax.Expr, *, constants: bool = False) -> tuple[relax.Expr, Affine] | None:
    """The uint8 tensor and parameters behind a dequantize node of an activation, or of a constant if ``constants``."""
    if op_name(expr) != "relax.dequantize" or dtype(expr.args[0]) != "uint8":
        return None
    if isinstance(expr.args[0], Constant) and not constants:
        return None
    affine = per_tensor(expr)
    return None if affine is None else (expr.args[0], affine)


@dataclass(frozen=True)
class Weight:
    """Constant int8 weights, ``real = scale[o] * q[o]``, output channels first."""

    values: NDArray[np.int8]
    scales: NDArray[np.float64]


def dequantized_weight(expr: relax.Expr) -> Weight | str:
    """The weights behind a dequantize node of a constant; or why the integer kernels cannot use them."""
    if op_name(expr) != "relax.dequantize" or not isinstance(expr.args[0], Constant):
        return "its weights are not quantized"
    values: NDArray[Any] = array(expr.args[0])
    if values.dtype != np.int8:
        return f"its weights are {values.dtype}; integer kernels take int8"
    zeros = array(expr.args[2])
    if zeros.any():
        return "its weights have a zero point; integer kernels take symmetric weights"
    scales = array(expr.args[1]).astype(np.float64).reshape(-1)
    if scales.size == 1:
        return Weight(values, np.full(values.shape[0], scales[0]))
    if int(expr.attrs.axis) % values.ndim != 0:
        return f"its weights have scales along axis {expr.attrs.axis}; integer kernels take one an output channel"
    return Weight(values, scales)
