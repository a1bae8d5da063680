"""Borders around outputs, against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import te, tirx

from qcompiler.targets.borders import Border, write_border


@pytest.mark.parametrize(
    "border",
    [
        Border(1, 2, 3, 1, 77),
        Border(0, 0, 0, 0, 5),
        Border(2, 0, 0, 0, 255),
        Border(0, 1, 0, 0, 0),
        Border(0, 0, 1, 2, 9),
    ],
    ids=str,
)
@pytest.mark.parametrize("shape", [(2, 4, 5, 3), (1, 1, 3, 8)], ids=str)
def test_equals_numpy(shape: tuple[int, ...], border: Border) -> None:
    x = te.placeholder(shape, "uint8", name="x")
    out = te.compute(shape, lambda *i: x[i] + tirx.const(1, "uint8"), name="out")
    function = write_border(te.create_prim_func([x, out]).with_attr("tirx.noalias", True), border)
    built = tvm.compile(tvm.IRModule({"main": function.with_attr("global_symbol", "main")}), target="llvm")
    given = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    result = tvm.runtime.tensor(np.full(border.around(shape), 123, np.uint8))
    built["main"](tvm.runtime.tensor(given), result)
    widths = ((0, 0), (border.top, border.bottom), (border.left, border.right), (0, 0))
    np.testing.assert_array_equal(result.numpy(), np.pad(given + 1, widths, constant_values=border.value))
