"""Kernels that TVM made get threads; scheduled ones are left alone."""

from __future__ import annotations

import pytest
import tvm
from tvm import te, tirx
from tvm.script import tirx as T

from qcompiler.errors import PassError
from qcompiler.passes.bind_threads import BindThreads
from qcompiler.passes.schedule_float import SCHEDULED


@T.prim_func(s_tir=True)
def scale(x: T.Buffer((3, 200), "float32"), y: T.Buffer((3, 200), "float32")) -> None:
    for i, j in T.grid(3, 200):
        with T.sblock("out"):
            v, w = T.axis.remap("SS", [i, j])
            y[v, w] = x[v, w] * T.float32(2)


@T.prim_func(s_tir=True)
def scale_with_threads(x: T.Buffer((3, 200), "float32"), y: T.Buffer((3, 200), "float32")) -> None:
    T.func_attr({"tirx.is_scheduled": True})
    for block in T.thread_binding(3, thread="blockIdx.x"):
        for thread in T.thread_binding(256, thread="threadIdx.x"):
            with T.sblock("out"):
                T.where(block * 256 + thread < 600)
                v = T.axis.spatial(3, (block * 256 + thread) // 200)
                w = T.axis.spatial(200, (block * 256 + thread) % 200)
                y[v, w] = x[v, w] * T.float32(2)


def test_each_element_gets_a_thread() -> None:
    after = BindThreads()(tvm.IRModule({"f": scale.without_attr("global_symbol")}))
    tvm.ir.assert_structural_equal(after["f"], scale_with_threads.without_attr("global_symbol"))


def test_a_scheduled_kernel_is_left_alone() -> None:
    before = tvm.IRModule({"f": scale.with_attr(SCHEDULED, True)})
    tvm.ir.assert_structural_equal(BindThreads()(before), before)


def test_reductions_and_scalars_run_in_their_thread() -> None:
    x = te.placeholder((4, 5), "float32", name="x")
    k, i, j = te.reduce_axis((0, 5)), te.reduce_axis((0, 4)), te.reduce_axis((0, 5))
    rows = te.compute((4,), lambda r: te.sum(x[r, k], axis=k), name="rows")
    total = te.compute((), lambda: te.sum(x[i, j], axis=[i, j]), name="total")
    after = BindThreads()(tvm.IRModule({"f": te.create_prim_func([x, rows, total])}))
    text = after.script()
    assert text.count('thread="blockIdx.x"') == text.count('thread="threadIdx.x"') == 2


def test_what_has_no_root_block_is_refused() -> None:
    x = tirx.decl_buffer((4,), "float32", name="x")
    function = tirx.PrimFunc([x], tirx.BufferStore(x, tirx.const(0.0, "float32"), [0]))
    with pytest.raises(PassError, match="f has no schedule for a GPU"):
        BindThreads()(tvm.IRModule({"f": function}))
