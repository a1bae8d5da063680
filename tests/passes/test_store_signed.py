"""Activations become int8 between integer operators, and uint8 again where others see them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qc_modules import assert_equal, const, make, operators
from tvm import relax

from qcompiler.operators import call
from qcompiler.passes.graph import bindings, dtype, op_name
from qcompiler.passes.store_signed import StoreSigned

Emit = Any


def lut(x: relax.Expr, **attrs: Any) -> relax.Call:
    return call("qc.lut", [x, const(np.arange(256, dtype=np.uint8))], **attrs)


def to_signed(emit: Emit, x: relax.Expr) -> relax.Expr:
    wide = emit(relax.op.add(relax.op.astype(x, "int16"), relax.const(-128, "int16")))
    return emit(relax.op.astype(wide, "int8"))


def to_unsigned(emit: Emit, x: relax.Expr) -> relax.Expr:
    wide = emit(relax.op.add(relax.op.astype(x, "int16"), relax.const(128, "int16")))
    return emit(relax.op.astype(wide, "uint8"))


def test_a_chain_is_converted_at_its_ends_alone() -> None:
    def before(emit: Emit, x: relax.Expr) -> relax.Expr:
        y = emit(lut(x))
        p = emit(relax.op.nn.pad(y, [0, 0, 1, 1, 1, 1, 0, 0], "constant", 3.0))
        return lut(emit(relax.op.reshape(p, (6, 30))))

    def after(emit: Emit, x: relax.Expr) -> relax.Expr:
        y = emit(lut(to_signed(emit, x), storage="int8"))
        p = emit(relax.op.nn.pad(y, [0, 0, 1, 1, 1, 1, 0, 0], "constant", -125.0))
        return to_unsigned(emit, emit(lut(emit(relax.op.reshape(p, (6, 30))), storage="int8")))

    shape = ((1, 4, 4, 5), "uint8")
    # Bindings of a variable to a variable do not matter.
    canonical = relax.transform.CanonicalizeBindings()
    assert_equal(canonical(StoreSigned()(make(before, shape))), canonical(make(after, shape)))


def test_constants_and_residuals_are_stored_signed() -> None:
    other = np.array([[0, 127, 128, 255]], np.uint8)

    def body(emit: Emit, x: relax.Expr) -> relax.Expr:
        y = emit(call("qc.quantize", [x], inv_scale=1.0, zero_point=0, lo=0, hi=255))
        z = call("qc.add", [y, const(other)], a_multiplier=1, b_multiplier=1, offset=0, shift=1, lo=0, hi=255)
        return call("qc.dequantize", [emit(z)], scale=1.0, zero_point=0)

    result = StoreSigned()(make(body, ((1, 4), "float32")))
    (added,) = (b.value for b in bindings(result) if op_name(b.value) == "qc.add")
    np.testing.assert_array_equal(added.args[1].value.numpy(), [[-128, -1, 0, 127]])
    assert operators(result) == ["qc.quantize", "qc.add", "qc.dequantize"]  # nothing is converted
    assert dtype(added) == "int8"


def test_joined_tensors_are_stored_alike() -> None:
    def body(emit: Emit, x: relax.Expr, y: relax.Expr) -> relax.Expr:
        return lut(emit(relax.op.concat([emit(lut(x)), y], axis=1)))

    result = StoreSigned()(make(body, ((1, 4), "uint8"), ((1, 3), "uint8")))
    (joined,) = (b for b in bindings(result) if op_name(b.value) == "relax.concat")
    assert dtype(joined.value) == "int8"


@pytest.mark.parametrize("name", ["float32", "uint8"])
def test_what_no_integer_operator_touches_is_left_alone(name: str) -> None:
    def body(emit: Emit, x: relax.Expr) -> relax.Expr:
        return relax.op.reshape(x, (4, 1))

    module = make(body, ((1, 4), name))
    assert_equal(StoreSigned()(module), module)
