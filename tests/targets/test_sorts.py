"""The sorting kernel against NumPy's stable order."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.targets.cpu.sorts import order_rows


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from(["float32", "int8", "uint8", "int64"]),
    st.sampled_from(["int32", "int64"]),
    st.booleans(),
    st.data(),
)
def test_order_is_stable(
    rows: int, length: int, dtype: str, positions: str, descending: bool, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, length))
    low, high = (0, 255) if dtype == "uint8" else (-128, 127)
    numbers = st.one_of(st.sampled_from([low, 0, high]), st.integers(low, high))  # many are equal
    x = np.array(data.draw(st.lists(numbers, min_size=rows * length, max_size=rows * length)), dtype)
    x = x.reshape(rows, length)
    kernel = order_rows(rows, length, kept, dtype, positions, descending)
    machine = tvm.compile(kernel.with_attr("global_symbol", "order"), target="llvm")
    values, indices = np.zeros((rows, kept), dtype), np.zeros((rows, kept), positions)
    arrays = [tvm.runtime.tensor(a) for a in (x, values, indices)]
    machine["order"](*arrays)
    key = x.astype(np.int64)
    wanted = np.argsort(-key if descending else key, axis=1, kind="stable")[:, :kept]
    assert np.array_equal(arrays[2].numpy(), wanted)
    assert np.array_equal(arrays[1].numpy(), np.take_along_axis(x, wanted, 1))


@pytest.mark.parametrize("length", [1, 2, 1000])
def test_infinities_and_signed_zeros(length: int) -> None:
    x = np.tile(np.array([0.0, -0.0, np.inf, -np.inf, 1e-40], np.float32), 200)[None, :length]
    kernel = order_rows(1, length, length, "float32", "int64", False).with_attr("global_symbol", "order")
    arrays = [tvm.runtime.tensor(a) for a in (x, np.zeros_like(x), np.zeros(x.shape, np.int64))]
    tvm.compile(kernel, target="llvm")["order"](*arrays)
    assert np.array_equal(arrays[2].numpy(), np.argsort(x, axis=1, kind="stable"))
