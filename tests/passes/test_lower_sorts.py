from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from qc_modules import assert_equal, make
from tvm import relax

from qcompiler.passes.graph import bindings, op_name
from qcompiler.passes.lower_sorts import LowerSorts
from qcompiler.reference import interpret
from qcompiler.targets.cpu.sorts import order_rows

X = ((2, 5, 7), "float32")


def test_an_axis_becomes_the_last() -> None:
    def expected(emit: Any, x: relax.Var) -> relax.Expr:
        x = emit(relax.op.permute_dims(x, (0, 2, 1)))
        x = emit(relax.op.reshape(x, (14, 5)))
        kernel = emit.__self__.add_func(order_rows(14, 5, 3, "float32", "int64", True), "order_rows")
        types = [relax.TensorType((14, 3), "float32"), relax.TensorType((14, 3), "int64")]
        both = emit(relax.call_tir(kernel, [x], out_ty=types))
        y = emit(relax.op.reshape(relax.TupleGetItem(both, 1), (2, 7, 3)))
        return relax.op.permute_dims(y, (0, 2, 1))

    before = make(lambda e, x: relax.op.topk(x, 3, axis=1, ret_type="indices", dtype="int64"), X)
    assert_equal(LowerSorts()(before), make(expected, X))


@pytest.mark.parametrize(
    "sort",
    [
        lambda x: relax.op.sort(x, axis=0, descending=True),
        lambda x: relax.op.sort(x, axis=-1),
        lambda x: relax.op.argsort(x, axis=1, dtype="int64"),
        lambda x: relax.op.topk(x, 4, axis=2, largest=False),
        lambda x: relax.op.topk(x, 1, axis=-2, ret_type="values"),
        lambda x: relax.op.topk(x, -1, ret_type="both", dtype="int64"),
    ],
)
def test_results_are_those_of_the_operator(sort: Callable[[relax.Expr], relax.Expr]) -> None:
    before = make(lambda e, x: sort(x), X)
    after = LowerSorts()(before)
    assert not {op_name(b.value) for b in bindings(after)} & {"relax.sort", "relax.argsort", "relax.topk"}
    x = np.random.default_rng(0).integers(0, 4, X[0]).astype(np.float32)
    for found, wanted in zip(interpret(after, [x]), interpret(before, [x]), strict=True):
        assert np.array_equal(found.array, wanted.array)
        assert found.array.dtype == wanted.array.dtype


def test_must_not_fire_elsewhere() -> None:
    module = make(lambda e, x: relax.op.argmax(x, axis=1), X)
    assert_equal(LowerSorts()(module), module)
