from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
from qc_modules import assert_equal, const, make
from tvm import relax

from qcompiler import operators as qc
from qcompiler.passes.store_bfloat16 import StoreBfloat16

BITS = ((3, 8), "uint16")
WEIGHT = np.ones((8, 8), np.float32)
BIAS = np.zeros(8, np.float32)


def layer(
    x: relax.Expr, *residual: relax.Expr, out: str = "float32", precision: str = "bfloat16"
) -> relax.Call:
    return qc.call(
        "qc.float_dense", [x, const(WEIGHT), const(BIAS), *residual], lo=-inf, hi=inf, precision=precision, out_dtype=out
    )  # fmt: skip


def bits(x: relax.Expr) -> relax.Call:
    return qc.call("qc.to_bfloat16", [x])


def check(before: Callable[..., Any], expected: Callable[..., Any], *inputs: Any) -> None:
    assert_equal(StoreBfloat16()(make(before, *inputs)), make(expected, *inputs))


def test_a_layer_writes_what_the_next_one_reads() -> None:
    check(
        lambda e, x: layer(e(bits(e(layer(x))))),
        lambda e, x: layer(e(layer(x, out="uint16"))),
        BITS,
    )


def test_a_residual_is_read_as_bfloat16() -> None:
    def before(emit, x):  # type: ignore[no-untyped-def]
        y = emit(layer(x))
        return layer(emit(bits(y)), y)

    def expected(emit, x):  # type: ignore[no-untyped-def]
        y = emit(layer(x, out="uint16"))
        return layer(y, y)

    check(before, expected, BITS)


def test_must_not_fire_where_something_else_reads_the_float() -> None:
    def both(emit, x):  # type: ignore[no-untyped-def]
        y = emit(layer(x))
        return layer(emit(bits(y))), relax.op.nn.gelu(y)

    check(both, both, BITS)


def test_must_not_fire_for_the_residual_of_a_float32_layer() -> None:
    def before(emit, x, real):  # type: ignore[no-untyped-def]
        return layer(real, emit(layer(x)), precision="float32")

    check(before, before, BITS, ((3, 8), "float32"))


def test_must_not_fire_for_an_output() -> None:
    check(lambda e, x: layer(x), lambda e, x: layer(x), BITS)
