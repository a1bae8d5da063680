"""The operators of this compiler: Relax operators in the namespace ``qc``, and the arithmetic they stand for.

This is the one definition that the rewriting passes, the kernels and the reference interpreter share.

Notation: ``u8``/``i8``/``i32``/``f32`` are dtypes; ``rne`` rounds to the nearest integer, halves to even;
``clip(v, lo, hi)`` is ``min(max(v, lo), hi)``; ``>>`` is the arithmetic shift of int32; ``f32(i)`` converts
with rounding to nearest even. An activation stands for ``scale * (q - zero_point)`` with q in u8.
No formula has two float products in one sum, so there is nothing that a compiler could contract into a fused
multiply-add: every IEEE machine computes the same bits.

Any operator may have an attribute ``storage``: ``uint8`` if it is missing, or ``int8``. It changes no value. With ``int8``
activations, operands and results alike, lie in memory as ``q - 128``, and the result's dtype is int8; attributes and
constants stay in terms of q.

Spatial operators have an attribute ``layout``, ``NCHW`` or ``NHWC``, of their activations; ``padding`` is
(top, left, bottom, right).

``qc.quantize(x: f32) -> u8``
    attrs ``inv_scale``, ``zero_point``, ``lo``, ``hi``.
    ``clip(rne(x * f32(inv_scale)) + zero_point, lo, hi)``
``qc.dequantize(x: u8) -> f32``
    attrs ``scale``, ``zero_point``.  ``f32(x - zero_point) * f32(scale)``
``qc.conv2d(x: u8, weight: i8 OIHW, bias: i32 [O], multiplier: f32 [O]
            [, residual: u8 like the output, residual_multiplier: i32 [O], residual_offset: i32 [O]])``
    attrs ``strides``, ``padding``, ``dilation``, ``groups``, ``layout``, ``pad_value``, ``zero_point``, ``lo``,
    ``hi``, ``residual_shift``, ``out_dtype``.
    ``acc[o] = sum(x * weight[o]) + bias[o]``, where the padding of x is filled with ``pad_value``; with a residual
    ``acc[o] += (residual * residual_multiplier[o] + residual_offset[o]) >> residual_shift``.
    ``out_dtype`` uint8:   ``clip(rne(f32(acc) * multiplier[o]) + zero_point, lo, hi)``
    ``out_dtype`` float32: ``f32(acc) * multiplier[o]``
    The zero point of x is inside ``bias``: the sum runs over the stored x.
``qc.dense(x: u8 [..., K], weight: i8 [O, K], bias, multiplier [, residual ...])``
    The same for a matrix product over the last axis; attrs ``zero_point``, ``lo``, ``hi``, ``residual_shift``,
    ``out_dtype``.
``qc.add(a: u8, b: u8) -> u8``
    attrs ``a_multiplier``, ``b_multiplier``, ``offset``, ``shift``, ``lo``, ``hi``; broadcasts as NumPy does.
    ``clip((a * a_multiplier + b * b_multiplier + offset) >> shift, lo, hi)`` in int32.
``qc.mul(a: u8, b: u8) -> u8``
    attrs ``a_zero_point``, ``b_zero_point``, ``multiplier``, ``zero_point``, ``lo``, ``hi``; broadcasts.
    ``clip(rne(f32((a - a_zero_point) * (b - b_zero_point)) * f32(multiplier)) + zero_point, lo, hi)``
``qc.lut(x: u8, table: u8 [256]) -> u8``
    ``table[x]``
``qc.max_pool2d(x: u8) -> u8``
    attrs ``pool_size``, ``strides``, ``padding``, ``dilation``, ``layout``, ``out_size`` (height, width of the
    output). The maximum of the window's valid positions; positions outside of x count as 0.
``qc.avg_pool2d(x: u8, multiplier: f32 [OH, OW]) -> u8``
    attrs ``pool_size``, ``strides``, ``padding``, ``layout``, ``input_zero_point``, ``zero_point``, ``lo``, ``hi``.
    ``acc = sum over the window's valid positions of (x - input_zero_point)``;
    ``clip(rne(f32(acc) * multiplier[h, w]) + zero_point, lo, hi)``. The divisor is inside ``multiplier``.

Reshape, permute_dims, concat, split, strided_slice, pad and resize2d (nearest) move bytes and stay Relax's own
operators on u8.

Float operators stand for what is left in float where a target has kernels for it. Their sums are float32, in any order;
``bf16`` is a bfloat16 by its bits, in uint16. Weights are given in float32, and ``precision`` (float32, bfloat16, float16,
int8_weights) says what they are rounded to when they are packed; ``int8_weights`` are ``scale[o] * q`` with q in int8.

``qc.round_float(x: f32) -> f32``
    attr ``precision``. What is computed from x may be computed in this precision: it marks the input of a float layer. As a
    function it is ``x`` rounded to the nearest number of the precision, and ``x`` itself for ``int8_weights``.
``qc.to_bfloat16(x: f32) -> bf16``
    The nearest, halves to even.

``qc.float_conv2d(x: f32 or bf16, weight: f32 OIHW, bias: f32 [O] [, residual: f32 or bf16 like the output])``
    attrs ``strides``, ``padding``, ``dilation``, ``groups``, ``layout``, ``lo``, ``hi``, ``precision``, ``out_dtype``
    (float32, or uint16 for bf16). ``clip(sum(x * weight[o]) + bias[o] + residual, lo, hi)``; ``lo`` and ``hi`` may be
    infinite.
``qc.float_dense(x: f32 or bf16 [..., K], weight: f32 [O, K], bias [, residual])``
    The same for a matrix product over the last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Op
from tvm.ir import _ffi_api as ir_ffi

RESIDUAL_MULTIPLIER_LIMIT = 1 << 22
"""Multipliers of an 8-bit value stay below this, so that the product and one more like it fit in int32."""


def _dims(expr: relax.Expr) -> list[int]:
    return [int(d) for d in expr.ty.shape]


def spatial_axes(layout: str) -> tuple[int, int, int]:
    """Axes (height, width, channels) of a four-dimensional activation."""
    return (2, 3, 1) if layout == "NCHW" else (1, 2, 3)


def window_extent(size: int, kernel: int, stride: int, pads: int, dilation: int = 1) -> int:
    """Output extent of a sliding window, rounding down."""
    return (size + pads - dilation * (kernel - 1) - 1) // stride + 1


def _stored(call: relax.Call, dtype: str = "uint8") -> str:
    """The result's dtype: ``dtype``, or for activations what ``storage`` says."""
    return str(call.attrs["storage"]) if dtype == "uint8" and "storage" in call.attrs else dtype


def _infer_conv2d(call: relax.Call) -> relax.TensorType:
    a, x, w = call.attrs, _dims(call.args[0]), _dims(call.args[1])
    hax, wax, cax = spatial_axes(str(a["layout"]))
    shape = list(x)
    pt, pl, pb, pr = (int(p) for p in a["padding"])
    shape[hax] = window_extent(x[hax], w[2], int(a["strides"][0]), pt + pb, int(a["dilation"][0]))
    shape[wax] = window_extent(x[wax], w[3], int(a["strides"][1]), pl + pr, int(a["dilation"][1]))
    shape[cax] = w[0]
    return relax.TensorType(shape, _stored(call, str(a["out_dtype"])))


def _infer_dense(call: relax.Call) -> relax.TensorType:
    x, w = _dims(call.args[0]), _dims(call.args[1])
    return relax.TensorType([*x[:-1], w[0]], _stored(call, str(call.attrs["out_dtype"])))


def _infer_binary(call: relax.Call) -> relax.TensorType:
    shape = np.broadcast_shapes(tuple(_dims(call.args[0])), tuple(_dims(call.args[1])))
    return relax.TensorType(list(shape), _stored(call))


def _infer_max_pool2d(call: relax.Call) -> relax.TensorType:
    shape = _dims(call.args[0])
    hax, wax, _ = spatial_axes(str(call.attrs["layout"]))
    shape[hax], shape[wax] = (int(s) for s in call.attrs["out_size"])
    return relax.TensorType(shape, _stored(call))


def _infer_avg_pool2d(call: relax.Call) -> relax.TensorType:
    shape = _dims(call.args[0])
    hax, wax, _ = spatial_axes(str(call.attrs["layout"]))
    shape[hax], shape[wax] = _dims(call.args[1])
    return relax.TensorType(shape, _stored(call))


def _infer_same(dtype: str) -> Callable[[relax.Call], relax.TensorType]:
    return lambda call: relax.TensorType(_dims(call.args[0]), _stored(call, dtype))


_DECLARATIONS: dict[str, Callable[[relax.Call], relax.TensorType]] = {
    "qc.quantize": _infer_same("uint8"),
    "qc.dequantize": _infer_same("float32"),
    "qc.conv2d": _infer_conv2d,
    "qc.dense": _infer_dense,
    "qc.add": _infer_binary,
    "qc.mul": _infer_binary,
    "qc.lut": _infer_same("uint8"),
    "qc.max_pool2d": _infer_max_pool2d,
    "qc.avg_pool2d": _infer_avg_pool2d,
}
INTEGER_OPERATORS = frozenset(_DECLARATIONS)
"""Names of the integer operators, the conversions at their borders included."""

BFLOAT16_BITS = "uint16"
"""Dtype of tensors that hold bfloat16 by their bits."""

_FLOAT_DECLARATIONS: dict[str, Callable[[relax.Call], relax.TensorType]] = {
    "qc.float_conv2d": _infer_conv2d,
    "qc.float_dense": _infer_dense,
    "qc.round_float": _infer_same("float32"),
    "qc.to_bfloat16": _infer_same(BFLOAT16_BITS),
}
FLOAT_LAYERS = frozenset({"qc.float_conv2d", "qc.float_dense"})
"""Names of the float operators that targets have kernels for."""


def _register() -> None:
    known = {str(name) for name in Op.list_op_names()}
    for name, infer in {**_DECLARATIONS, **_FLOAT_DECLARATIONS}.items():
        if name in known:
            continue
        ir_ffi.RegisterOp(name, name)
        op = Op.get(name)
        op.set_num_inputs(-1)
        op.set_attr("FInferType", lambda call, _builder, infer=infer: infer(call))
        op.set_attr("FPurity", True)


_register()


def call(name: str, args: Sequence[relax.Expr], **attrs: Any) -> relax.Call:
    """A call of operator ``name`` of this compiler; the block builder that emits it infers its type."""
    assert name in INTEGER_OPERATORS or name in _FLOAT_DECLARATIONS, name
    return relax.Call(Op.get(name), list(args), tvm.ir.make_node("ir.DictAttrs", **attrs))


def is_call(expr: relax.Expr, name: str) -> bool:
    """Whether ``expr`` calls operator ``name``, an integer operator or one of Relax's own."""
    return isinstance(expr, relax.Call) and isinstance(expr.op, Op) and expr.op.name == name
