from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import te

from qcompiler.passes.schedule_float import SCHEDULED, ScheduleFloat


def module(*tensors: te.Tensor) -> tvm.IRModule:
    return tvm.IRModule({"kernel": te.create_prim_func(list(tensors)).without_attr("global_symbol")})


def exponential(*shape: int) -> tvm.IRModule:
    x = te.placeholder(shape, "float32", name="x")
    return module(x, te.compute(shape, lambda *i: te.exp(x[i]), name="y"))


def row_sum(rows: int, columns: int, inner: int) -> tvm.IRModule:
    x = te.placeholder((rows, columns, inner), "float32", name="x")
    k = te.reduce_axis((0, columns), "k")
    return module(x, te.compute((rows, inner), lambda i, j: te.sum(x[i, k, j], axis=k), name="y"))


def text(scheduled: tvm.IRModule) -> str:
    return str(scheduled["kernel"].script())


def test_large_kernels_are_parallel_and_vectorized() -> None:
    code = text(ScheduleFloat(512)(exponential(64, 1024)))
    assert "T.parallel" in code
    assert "T.vectorized(16)" in code


def test_small_kernels_run_on_one_thread() -> None:
    code = text(ScheduleFloat(256)(exponential(4, 64)))
    assert "T.parallel" not in code
    assert "T.vectorized(8)" in code


def test_reductions_are_vectorized_over_their_outputs() -> None:
    code = text(ScheduleFloat(256)(row_sum(64, 100, 32)))
    assert "T.parallel" in code
    assert "T.vectorized(16)" in code


def test_booleans_are_written_one_at_a_time_and_compile() -> None:
    x = te.placeholder((4, 64), "float32", name="x")
    positive = module(x, te.compute((4, 64), lambda i, j: x[i, j] > 0, name="y"))
    scheduled = ScheduleFloat(256)(positive)
    assert "T.vectorized" not in text(scheduled)
    compiled = tvm.compile(
        tvm.IRModule({"kernel": scheduled["kernel"].with_attr("global_symbol", "kernel")}), target="llvm"
    )
    data = np.random.default_rng(0).normal(size=(4, 64)).astype(np.float32)
    out = tvm.runtime.tensor(np.zeros((4, 64), bool))
    compiled["kernel"](tvm.runtime.tensor(data), out)
    np.testing.assert_array_equal(out.numpy(), data > 0)


def test_vectors_are_as_wide_as_the_outputs_allow() -> None:
    """48 outputs are three vectors of 16, and no one and a half of 32."""
    for bits, inner, width in ((512, 48, 16), (512, 64, 32), (512, 24, 8), (256, 48, 16), (256, 12, 4)):
        assert f"T.vectorized({width})" in text(ScheduleFloat(bits)(row_sum(3, 5, inner)))


def test_kernels_with_a_schedule_are_left_alone() -> None:
    plain = exponential(64, 1024)
    marked = tvm.IRModule({"kernel": plain["kernel"].with_attr(SCHEDULED, True)})
    tvm.ir.assert_structural_equal(ScheduleFloat(512)(marked), marked)


@pytest.mark.parametrize(
    ("build", "shapes"),
    [
        (lambda: exponential(3, 7, 11), [(3, 7, 11), (3, 7, 11)]),
        (lambda: exponential(5), [(5,), (5,)]),
        (lambda: exponential(4, 4096), [(4, 4096), (4, 4096)]),
        (lambda: row_sum(3, 5, 7), [(3, 5, 7), (3, 7)]),
        (lambda: row_sum(2, 5, 3), [(2, 5, 3), (2, 3)]),
        (lambda: row_sum(4, 9, 70), [(4, 9, 70), (4, 70)]),
        (lambda: row_sum(3, 5, 12), [(3, 5, 12), (3, 12)]),
    ],
)
def test_schedules_do_not_change_values(build: Any, shapes: list[tuple[int, ...]]) -> None:
    results = []
    data = np.random.default_rng(0).normal(size=shapes[0]).astype(np.float32)
    for scheduled in (build(), ScheduleFloat(256)(build())):
        # None of these has a parallel loop, so they leave this thread without a pool of workers.
        assert "T.parallel" not in text(scheduled)
        function = scheduled["kernel"].with_attr("global_symbol", "kernel")
        compiled = tvm.compile(tvm.IRModule({"kernel": function}), target="llvm")
        out = tvm.runtime.tensor(np.zeros(shapes[1], np.float32))
        compiled["kernel"](tvm.runtime.tensor(data), out)
        results.append(out.numpy())
    np.testing.assert_allclose(results[1], results[0], rtol=1e-6)
