"""Compilation takes tuned schedules, those of similar kernels where the cost model likes them, or the default."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm_ffi
from small_tuning import TARGET, TVM_TARGET, module, physical, tasks, writer

from qcompiler.config import CompileConfig
from qcompiler.driver.tuning import apply, cost
from qcompiler.driver.tuning import log as logs
from qcompiler.driver.tuning.apply import TunedScheduler, distance, log_folder, open_logs
from qcompiler.driver.tuning.decisions import fit, key, samples, to_json
from qcompiler.driver.tuning.log import KEY, MODEL, Record
from qcompiler.driver.tuning.tasks import Task, extract
from qcompiler.errors import TuningLogError
from qcompiler.targets.workload import finish, sketched


def last(task: int) -> Any:
    """The last sketch of a task, which is not its default."""
    neutral = tasks()[task].neutral
    return to_json(sketched(neutral, len(neutral.sketches) - 1).trace)


@pytest.fixture
def tuned(tmp_path: Path) -> Path:
    folder = tmp_path / TARGET.name
    for index, task in enumerate(tasks()):
        writer(folder).append(task.neutral.module, Record(last(index), (1e-6,)))
    return folder


def schedule(folder: Path, width: int = 12) -> tuple[list[str | None], TunedScheduler]:
    """Origins of the layers of :func:`small_tuning.module`."""
    scheduler = TunedScheduler([logs.read(folder)], TVM_TARGET)
    return [layer.schedule for layer in physical(module(width), scheduler).layers], scheduler


def test_known_kernels_are_tuned(tuned: Path) -> None:
    origins, scheduler = schedule(tuned)
    assert set(origins) == {"tuned"}
    assert scheduler.threads == {1}
    for task in tasks():
        wanted = finish(sketched(task.workload, len(task.workload.sketches) - 1))
        assert tvm_ffi.structural_equal(scheduler(task.workload).function, wanted)


def test_unknown_kernels_get_the_default_without_a_cost_model(tuned: Path) -> None:
    origins, scheduler = schedule(tuned, width=14)
    assert set(origins) == {"default"}
    assert scheduler.threads == set()


@pytest.mark.parametrize(("liked", "origin"), [(True, "transferred"), (False, "default")])
def test_unknown_kernels_take_decisions_that_the_cost_model_likes(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, liked: bool, origin: str
) -> None:
    class Model:
        def __init__(self, path: Path, target: Any) -> None:
            assert path == tuned / MODEL

        def scores(self, schedules: list[Any]) -> list[float]:
            assert len(schedules) == 2
            return [0.5, 0.9] if liked else [0.5, 0.5]

    (tuned / MODEL).touch()
    monkeypatch.setattr(cost, "SavedModel", Model)
    origins, _ = schedule(tuned, width=14)
    assert set(origins) == {origin}


def planted(trace: Any) -> float:
    """Seconds that fall with the columns of a tile."""
    return 1e-5 * (1 + 4 / float(samples(trace)[0].value[-1]))


def variants(task: Task, width: int) -> list[Any]:
    """Traces of every sketch with every tile of columns that divides ``width``."""
    found = {}
    for index in range(len(task.neutral.sketches)):
        instructions, ((first, _), *others) = to_json(sketched(task.neutral, index).trace)
        for inner in (d for d in range(1, width + 1) if width % d == 0):
            fitted = fit(task.neutral, [instructions, [[first, [width // inner, inner]], *others]])
            assert fitted is not None
            trace = to_json(fitted.schedule.trace)
            found[key(trace)] = trace
    return list(found.values())


def test_the_cost_model_learns_from_a_log_and_ranks_kernels_that_it_does_not_know(tmp_path: Path) -> None:
    made = writer(tmp_path)
    for task in tasks():
        for trace in variants(task, 12):
            made.append(task.neutral.module, Record(trace, (planted(trace),)))
    learned = cost.learn(logs.read(tmp_path), TVM_TARGET)
    assert learned is not None
    made.save_model(learned)
    model = cost.SavedModel(tmp_path / MODEL, TVM_TARGET)
    for task in extract(physical(module(width=18))):
        traces = variants(task, 18)
        fitted = [fit(task.neutral, trace) for trace in traces]
        scores = np.asarray(model.scores([f.schedule for f in fitted if f is not None]))
        times = np.asarray([planted(trace) for trace in traces])
        assert len(scores) == len(times)
        assert np.corrcoef(scores.argsort().argsort(), (-times).argsort().argsort())[0, 1] > 0.5


def test_a_damaged_cost_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / MODEL).write_bytes(b"no trees")
    with pytest.raises(TuningLogError, match="remove it, or tune again"):
        cost.SavedModel(tmp_path / MODEL, TVM_TARGET)


def test_too_little_to_learn_from(tuned: Path) -> None:
    assert cost.learn(logs.read(tuned), TVM_TARGET) is None


def test_a_record_that_does_not_fit_is_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The 3x3 kernel's tile of columns does not divide the 1x1 kernel's."""
    folder = tmp_path / "log"
    made = writer(folder)
    for task in tasks():
        trace = json.loads(json.dumps(to_json(sketched(task.neutral, 0).trace)))
        trace[1][0][1] = [5, 5]
        made.append(task.neutral.module, Record(trace, (1e-6,)))
    origins, _ = schedule(folder)
    assert set(origins) == {"default"}
    assert "does not fit its sketches any more" in caplog.text


def test_a_folder_of_logs_or_a_log(tuned: Path) -> None:
    assert log_folder(tuned, TARGET) == tuned
    assert log_folder(tuned.parent, TARGET) == tuned
    for given in (tuned, tuned.parent):
        (found,) = open_logs(TARGET, CompileConfig(log=given, tuned=False))
        assert found.folder == tuned


def test_a_given_log_must_fit_and_a_shipped_one_need_not(
    tuned: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tuned / KEY
    path.write_text(json.dumps({**json.loads(path.read_text()), "schedule_version": 0}))
    with pytest.raises(TuningLogError, match="schedule version 0"):
        open_logs(TARGET, CompileConfig(log=tuned))
    with pytest.raises(TuningLogError, match="is no tuning log"):
        open_logs(TARGET, CompileConfig(log=tuned.parent / "none"))
    monkeypatch.setattr(apply, "SHIPPED", tuned.parent)
    with caplog.at_level(logging.WARNING):
        assert open_logs(TARGET, CompileConfig()) == []
    assert "kernels get their default schedules" in caplog.text
    assert open_logs(TARGET, CompileConfig(tuned=False)) == []


def test_distance_is_of_ratios() -> None:
    assert distance([[1, 56, 64]], [[1, 56, 64]]) == 0
    assert distance([[2, 8]], [[4, 4]]) == pytest.approx(distance([[4, 4]], [[2, 8]]))
    assert distance([[64]], [[128]]) < distance([[64]], [[16]])
