"""Candidates are built, checked and timed in processes that may die."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_tuning import TARGET, TVM_TARGET, tasks

from qcompiler.driver.tuning import worker
from qcompiler.driver.tuning.decisions import plain, to_json
from qcompiler.driver.tuning.fleet import LocalFleet, outcomes
from qcompiler.driver.tuning.tasks import Prepared, prepare
from qcompiler.driver.tuning.trial import Build, Run, padded
from qcompiler.targets.workload import sketched


@pytest.fixture(scope="module")
def fleet() -> Iterator[LocalFleet]:
    made = LocalFleet(TARGET, 2, run_timeout=20)
    yield made
    made.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    return prepare(tasks()[0], tmp_path_factory.mktemp("tuning") / "task", TARGET.l2_bytes)


@pytest.fixture(scope="module")
def libraries(fleet: LocalFleet, files: Prepared) -> list[str]:
    task = tasks()[0]
    jobs = [
        Build(
            files.module, to_json(sketched(task.neutral, k).trace), files.copies, plain(TVM_TARGET.export()),
            str(files.folder / f"{k}.so"),
        )
        for k in range(len(task.neutral.sketches))
    ]  # fmt: skip
    assert fleet.build(jobs) == [None] * len(jobs)
    return [job.library for job in jobs]


def test_every_sketch_computes_what_the_reference_does(
    fleet: LocalFleet, files: Prepared, libraries: list[str]
) -> None:
    threads = (1, len(os.sched_getaffinity(0)))
    timings = fleet.run([Run((library,), files.data, files.copies, threads) for library in libraries])
    for (timing,) in timings:
        assert timing.fault is None
        assert len(timing.seconds) == 2
        assert all(0 < s < 1 for s in timing.seconds)


def test_a_wrong_output_is_found(
    fleet: LocalFleet, files: Prepared, libraries: list[str], tmp_path: Path
) -> None:
    with np.load(files.data) as archive:
        arrays: dict[str, Any] = dict(archive)
    arrays["expected"] = arrays["expected"].copy()
    arrays["expected"].reshape(-1)[-1] ^= 1
    np.savez(tmp_path / "data.npz", **arrays)
    ((timing,),) = fleet.run([Run((libraries[0],), str(tmp_path / "data.npz"), files.copies, (1,))])
    assert timing.wrong
    assert "differs from the reference in 1 bytes" in (timing.fault or "")


def test_libraries_of_one_job_are_timed_in_turns(
    fleet: LocalFleet, files: Prepared, libraries: list[str]
) -> None:
    (timings,) = fleet.run([Run(tuple(libraries[:3]), files.data, files.copies, (1,), rounds=2)])
    assert [t.fault for t in timings] == [None] * 3


def test_faults_are_told_and_the_next_job_runs(
    fleet: LocalFleet, files: Prepared, libraries: list[str]
) -> None:
    broken = Build(
        files.module, [[["NoSuch", [], [], []]], []], files.copies, plain(TVM_TARGET.export()), "x.so"
    )
    (fault,) = fleet.build([broken])
    assert "NoSuch" in (fault or "")
    (missing,), (fine,) = fleet.run(
        [Run((str(files.folder / "none.so"),), files.data, files.copies, (1,)), Run((libraries[0],), files.data, files.copies, (1,))]
    )  # fmt: skip
    assert "none.so" in (missing.fault or "")
    assert fine.fault is None


@pytest.mark.slow
def test_a_process_that_dies_or_hangs_is_replaced() -> None:
    small = LocalFleet(TARGET, 1, run_timeout=3)
    try:
        runner = small._runner
        faults = [fault for _, fault in outcomes([runner.submit(os._exit, 3), runner.submit(time.sleep, 30)])]
        assert faults == ["its process died", "it took too long"]
        assert runner.submit(worker.stays_light).result(), (
            "a new process answers, and has imported nothing slow"
        )
    finally:
        small.close()


def test_copies_of_the_weights_fill_the_cache(files: Prepared, tmp_path: Path) -> None:
    assert files.copies[0] == files.copies[-1] == 1, "activations have one copy"
    assert set(files.copies[1:-1]) == {8}
    task = tasks()[0]
    constants = sum(
        int(np.prod([int(d) for d in b.shape])) * np.dtype(str(b.dtype)).itemsize
        for b in task.workload.function.params[1:-1]
    )
    assert prepare(task, tmp_path / "one", constants // 4).copies[1] in (1, 2)


def test_inputs_hold_the_extremes_and_copies_are_aligned(files: Prepared) -> None:
    with np.load(files.data) as archive:
        assert {0, 255} <= set(archive["a0"].reshape(-1)[:2].tolist())
    assert padded(3, "int32") == 16
    assert padded(64, "uint8") == 64
