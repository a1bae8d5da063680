from __future__ import annotations

import numpy as np
from qc_modules import assert_equal, const, dq, dq_weight, make, q
from tvm import relax

from qcompiler.passes.unsigned_activations import UseUnsignedActivations

REALS = ((2, 8), "float32")


def test_signed_activations_are_shifted() -> None:
    before = make(lambda e, x: relax.op.nn.relu(e(signed_dq(e(q(x, 0.5, -3, "int8")), 0.5, -3))), REALS)
    expected = make(lambda e, x: relax.op.nn.relu(e(dq(e(q(x, 0.5, 125)), 0.5, 125))), REALS)
    assert_equal(UseUnsignedActivations()(before), expected)


def signed_dq(x: relax.Expr, scale: float, zero_point: int) -> relax.Expr:
    return dq(x, scale, zero_point)


def test_weights_stay_signed() -> None:
    weight = np.full((4, 8), -127, np.int8)

    def build(emit, x):  # type: ignore[no-untyped-def]
        w = emit(dq_weight(weight, np.full(4, 0.5)))
        return relax.op.matmul(x, emit(relax.op.permute_dims(w, [1, 0])))

    module = make(build, REALS)
    assert_equal(UseUnsignedActivations()(module), module)


def test_unsigned_activations_stay() -> None:
    module = make(lambda e, x: relax.op.add(e(dq(e(q(x, 0.5, 7)), 0.5, 7)), const(1.0, "float32")), REALS)
    assert_equal(UseUnsignedActivations()(module), module)
