"""What a tuning log knows a kernel by: the kernel without the constants of its requantization.

Zero points, bounds, shifts and the value of the padding are part of a kernel, and differ between layers and between two
calibrations of one network. How long the kernel takes does not depend on them. So they are all replaced by one before a
kernel is looked up or written into a log.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import tvm_ffi
from tvm import tirx
from tvm.ir import Call
from tvm.ir.prim.expr import BinaryOpExpr
from tvm.tirx import FloatImm, IntImm

from qcompiler.targets.workload import Workload

OPERATOR = "qcompiler.operator"
"""Attribute of a neutral kernel: its operator class."""

NAME = "qcompiler.name"
"""Attribute of a neutral kernel: what people call it."""

_IF_THEN_ELSE = "prim.if_then_else"


def neutral(workload: Workload) -> Workload:
    """``workload`` with a kernel that has ones for constants, and that tells its operator class and its name."""
    body = tvm_ffi.structural_map(workload.function.body, (tirx.BufferStore, _neutral_store))
    old = workload.function
    function = tirx.PrimFunc(old.params, body, old.ret_type, old.attrs, old.span)
    function = function.with_attr(OPERATOR, workload.operator).with_attr(NAME, workload.name)
    return replace(workload, function=function)


def _neutral_store(store: tirx.BufferStore) -> tirx.BufferStore:
    return tirx.BufferStore(store.buffer, _neutral(store.value), store.indices, span=store.span)


def _neutral(value: Any) -> Any:
    """``value`` with constants replaced where they are operands; indices of loads are left alone."""
    if isinstance(value, BinaryOpExpr):
        return type(value)(_operand(value.a), _operand(value.b))
    if isinstance(value, tirx.Cast):
        return tirx.Cast(value.ty.dtype, _neutral(value.value))
    if isinstance(value, tirx.Select):
        return tirx.Select(value.condition, _operand(value.true_value), _operand(value.false_value))
    if isinstance(value, Call):
        # An argument that is a constant names a function or a mode, but for the two values of a choice.
        choice = getattr(value.op, "name", None) == _IF_THEN_ELSE
        args = [_operand(a) if choice and k > 0 else _neutral(a) for k, a in enumerate(value.args)]
        return Call(value.op, args, value.attrs, value.ty_args, value.span, value.ty)
    return value


def _operand(value: Any) -> Any:
    if isinstance(value, IntImm):
        return IntImm(value.ty.dtype, 1)
    if isinstance(value, FloatImm):
        return FloatImm(value.ty.dtype, 1.0)
    return _neutral(value)
