"""Kernels that differ in constants are one kernel to a log; those that differ in anything else are not."""

from __future__ import annotations

import tvm_ffi
from small_tuning import module, physical, tasks

from qcompiler.driver.tuning.neutral import NAME, OPERATOR, neutral
from qcompiler.driver.tuning.tasks import extract


def test_layers_that_differ_in_zero_points_share_a_task() -> None:
    assert sorted(task.weight for task in tasks()) == [1, 2]
    kernels = {layer.kernel for layer in physical(module()).layers}
    assert len(kernels) == 3


def test_constants_are_one_and_indices_are_kept() -> None:
    task = next(t for t in tasks() if t.weight == 2)
    text = task.neutral.function.script()
    assert "T.uint32(1)" in text
    assert "T.uint32(255)" not in text
    # The index of the innermost channel stays what it was: k // 4 * 4 + k % 4.
    assert "* 4 + " in text
    assert "llvm.lrint" in text


def test_names_are_in_the_kernel() -> None:
    attrs = tasks()[0].neutral.function.attrs
    assert str(attrs[OPERATOR]) == tasks()[0].workload.operator
    assert str(attrs[NAME]) == tasks()[0].name


def test_other_extents_are_another_kernel() -> None:
    other = extract(physical(module(width=10)))
    hashes = {int(tvm_ffi.structural_hash(neutral(t.workload).function)) for t in (*tasks(), *other)}
    assert len(hashes) == 4
