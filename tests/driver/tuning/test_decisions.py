"""Decisions leave a trace and come back to a sketch, of the same kernel or of another one."""

from __future__ import annotations

import json

import pytest
import tvm_ffi
from small_tuning import module, physical, tasks
from tvm import te
from tvm.s_tir import Schedule

from qcompiler.driver.tuning.decisions import fit, key, samples, to_json
from qcompiler.driver.tuning.tasks import Task, extract
from qcompiler.targets.workload import Workload, finish, sketched


def wide() -> Task:
    """The task of the 3x3 convolution."""
    return next(t for t in tasks() if t.weight == 1)


def test_a_sketch_s_own_trace_gives_the_same_kernel() -> None:
    for task in tasks():
        for index in range(len(task.workload.sketches)):
            own = sketched(task.workload, index)
            trace = json.loads(json.dumps(to_json(own.trace)))
            fitted = fit(task.workload, trace)
            assert fitted is not None
            assert fitted.exact
            assert tvm_ffi.structural_equal(finish(fitted.schedule), finish(own))
            assert key(to_json(fitted.schedule.trace)) == key(trace)


def test_constants_come_from_the_kernel_at_hand() -> None:
    """Decisions found on a kernel fit one that differs in its zero point, which keeps its own."""
    here, there = (physical(module(zero_points=(z, z))).tunable["qc_conv2d"].workload for z in (3, 9))
    fitted = fit(there, to_json(sketched(here, 0).trace))
    assert fitted is not None
    assert fitted.exact
    assert tvm_ffi.structural_equal(finish(fitted.schedule), finish(sketched(there, 0)))


def test_tiles_become_the_nearest_divisors_below() -> None:
    task, other = wide(), next(t for t in extract(physical(module(width=11))) if t.weight == 1)
    trace = to_json(sketched(task.workload, 0).trace)
    fitted = fit(other.workload, trace)
    assert fitted is not None
    given = [s.value for s in samples(trace)]
    taken = [s.value for s in samples(to_json(fitted.schedule.trace))]
    assert fitted.exact == (given == taken)
    for before, after in zip(given, taken, strict=True):
        assert after[-1] <= max(before[-1], 1)


def _doubled(n: int, choices: tuple[int, ...], chosen: int) -> Workload:
    x = te.placeholder((n,), "float32", name="x")
    y = te.compute((n,), lambda i: x[i] * 2.0, name="y")

    def sketch(sch: Schedule) -> None:
        (loop,) = sch.get_loops(sch.get_sblock("y"))
        inner = sch.sample_categorical(
            list(choices), [1 / len(choices)] * len(choices), decision=choices.index(chosen)
        )
        sch.split(loop, [None, inner])

    return Workload("double", f"double {n}", te.create_prim_func([x, y]), (sketch,))


def test_a_choice_becomes_the_nearest_number() -> None:
    trace = to_json(sketched(_doubled(60, (3, 5, 6), 6), 0).trace)
    same = fit(_doubled(60, (3, 5, 6), 3), trace)
    assert same is not None
    assert (same.exact, samples(to_json(same.schedule.trace))[0].value) == (True, (6,))
    other = fit(_doubled(64, (2, 4, 8), 2), trace)
    assert other is not None
    assert not other.exact
    assert samples(to_json(other.schedule.trace))[0].value in ((4,), (8,))


def test_a_trace_of_another_kind_fits_nothing() -> None:
    assert fit(wide().workload, to_json(sketched(_doubled(60, (3, 5), 3), 0).trace)) is None


def test_unknown_sampling_is_refused() -> None:
    with pytest.raises(ValueError, match="SampleComputeLocation"):
        samples([[["SampleComputeLocation", ["b0"], [], ["l1"]]], [[0, -1]]])
