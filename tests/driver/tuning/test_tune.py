"""Tuning, with a fleet that makes up its times: the order of things, what is kept, what is not measured again."""

from __future__ import annotations

import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_tuning import TARGET, TVM_TARGET, FakeFleet, tasks, tune, writer

from qcompiler.config import TuneConfig
from qcompiler.driver.tuning import log as logs
from qcompiler.driver.tuning.decisions import key, to_json
from qcompiler.driver.tuning.log import RECORDS
from qcompiler.driver.tuning.trial import Timing
from qcompiler.driver.tuning.tune import tune_tasks
from qcompiler.errors import TuningError
from qcompiler.targets.workload import sketched


def default(task: int) -> str:
    return key(to_json(sketched(tasks()[task].neutral, 0).trace))


DEFAULTS = [default(0), default(1)]


def by_tile(trace: Any, _: int) -> float:
    """Large products of decisions are fast, and the defaults are slow."""
    if key(trace) in DEFAULTS:
        return 1e-4
    return 1e-5 + 1e-6 / (1 + len(key(trace)) % 7)


def test_the_default_is_the_first_candidate_of_every_task(tmp_path: Path) -> None:
    fleet = FakeFleet(by_tile)
    result = tune(tmp_path, fleet, trials=4)
    assert [key(trace) for trace in fleet.runs[:2]] == DEFAULTS
    assert result.trials == 4
    assert fleet.closed
    log = logs.read(tmp_path)
    assert sum(map(len, log.records.values())) == 4


def test_the_fastest_is_chosen(tmp_path: Path) -> None:
    result = tune(tmp_path, FakeFleet(by_tile), trials=12)
    log = logs.read(tmp_path)
    for index in range(2):
        best = log.best(index)
        assert best is not None
        assert key(best.trace) not in DEFAULTS
        assert best.score < 2e-5
    assert all(kernel.gain > 0.8 for kernel in result.kernels)
    assert result.gain > 0.8


def test_a_gain_within_the_noise_keeps_the_default(tmp_path: Path) -> None:
    result = tune(tmp_path, FakeFleet(lambda trace, _: 1e-4 if key(trace) in DEFAULTS else 0.99e-4), trials=8)
    assert [kernel.gain for kernel in result.kernels] == [0, 0]
    log = logs.read(tmp_path)
    assert {key(log.choices[k].trace) for k in (0, 1)} == set(DEFAULTS)


def test_a_lucky_measurement_is_found_out(tmp_path: Path) -> None:
    """The comparison at the end decides, not the record."""
    seen: set[str] = set()

    def lucky_once(trace: Any, _: int) -> float:
        name = key(trace)
        first = name not in seen
        seen.add(name)
        return 1e-4 if name in DEFAULTS else 1e-6 if first else 2e-4

    result = tune(tmp_path, FakeFleet(lucky_once), trials=8)
    assert [kernel.gain for kernel in result.kernels] == [0, 0]


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    first, second = FakeFleet(by_tile), FakeFleet(by_tile)
    tune(tmp_path, first, trials=8)
    measured = {key(trace) for trace in first.runs[:8]}
    lines = len((tmp_path / RECORDS).read_text().splitlines())
    result = tune(tmp_path, second, trials=5)
    assert result.reused == 8
    assert result.trials == 5
    # Without the comparisons at the end, which measure the best again.
    assert not measured & {key(trace) for trace in second.runs[:5]}
    assert len((tmp_path / RECORDS).read_text().splitlines()) == lines + 5


def test_a_resumed_run_still_compares_with_the_default(tmp_path: Path) -> None:
    """Two schedules of each kernel fit into one batch: the better one must not stand for the default."""
    times = FakeFleet(lambda trace, _: 1e-4 if key(trace) in DEFAULTS else 0.5e-4)
    tune(tmp_path, times, trials=4, batch=1)
    said: list[str] = []
    tune(tmp_path, times, said.append, trials=2, batch=8)
    rounds = [line for line in said if "expected gain" in line or "searched through" in line]
    assert rounds
    for line in rounds:
        assert "best 50.0 us, default 100.0 us (-50.0 %)" in line


def test_a_space_is_searched_through_and_no_schedule_is_measured_twice(tmp_path: Path) -> None:
    fleet = FakeFleet(by_tile)
    result = tune(tmp_path, fleet, trials=10_000, batch=64)
    assert result.reason == "all schedules of all kernels have been measured"
    keys = [key(r.trace) for records in logs.read(tmp_path).records.values() for r in records]
    assert len(keys) == len(set(keys)) == result.trials


def test_a_wrong_candidate_is_reported_and_never_stored(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def wrong(trace: Any, _: int) -> float | Timing:
        if key(trace) in DEFAULTS:
            return 1e-4
        return Timing(fault="its output differs from the reference", wrong=True)

    with caplog.at_level(logging.ERROR):
        result = tune(tmp_path, FakeFleet(wrong), trials=6)
    assert (result.failed, result.wrong) == (4, 4)
    assert "is wrong and is not kept" in caplog.text
    stored = [key(r.trace) for records in logs.read(tmp_path).records.values() for r in records]
    assert sorted(stored) == sorted(DEFAULTS)


def test_a_candidate_that_fails_is_not_stored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def dies(trace: Any, _: int) -> float | Timing:
        return 1e-4 if key(trace) in DEFAULTS else Timing(fault="its process died")

    result = tune(tmp_path, FakeFleet(dies), trials=6)
    assert (result.failed, result.wrong) == (4, 0)
    assert "its process died" in caplog.text
    assert "1e10" not in (tmp_path / RECORDS).read_text().replace("+", "")


def test_without_a_default_there_is_nothing_to_tune(tmp_path: Path) -> None:
    with pytest.raises(
        TuningError, match="no default schedule can be measured; the first one: its process died"
    ):
        tune(tmp_path, FakeFleet(lambda trace, n: Timing(fault="its process died")))


def test_it_ends_when_little_is_expected(tmp_path: Path) -> None:
    result = tune(tmp_path, FakeFleet(lambda trace, n: 1e-4), trials=1000, min_gain=0.2)
    assert result.reason == "less than 20 % is expected to be gained"
    assert result.trials == len(tasks())


def test_it_ends_in_time(tmp_path: Path) -> None:
    result = tune(tmp_path, FakeFleet(lambda trace, n: 1e-4), trials=1000, minutes=1e-6)
    assert result.reason == "1e-06 minutes are over"
    assert result.trials == len(tasks())


def test_progress_tells_best_and_expected_gain(tmp_path: Path) -> None:
    said: list[str] = []
    tune(tmp_path, FakeFleet(by_tile), said.append, trials=6)
    assert said
    assert all("best" in line and "default" in line and "expected" in line for line in said)
    assert any(tasks()[0].name in line or tasks()[1].name in line for line in said)


def test_seconds_are_weighted_with_threads(tmp_path: Path) -> None:
    """Two threads that need as long as one count double."""
    fleet = FakeFleet(lambda trace, n: 1e-4)
    settings = TuneConfig(trials=2)
    tune_tasks(tasks(), TARGET, TVM_TARGET, writer(tmp_path, (1, 2)), lambda: fleet, (1, 2), settings, print)
    assert {r.seconds for r in logs.read(tmp_path).records[0]} == {(1e-4, 2e-4)}


_KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {quantization!r}]
from small_tuning import FakeFleet, tune

def time_of(trace, number):
    if number == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1e-4 / number

tune(Path({folder!r}), FakeFleet(time_of), trials=20)
"""


def test_a_killed_run_loses_nothing_and_is_resumed(tmp_path: Path) -> None:
    here = Path(__file__).resolve().parents[2]
    program = _KILLED.format(tests=str(here), quantization=str(here / "quantization"), folder=str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    # Two defaults and a round of two; the second round was in the middle when the process was killed.
    assert sum(map(len, logs.read(tmp_path).records.values())) == 4
    fleet = FakeFleet(by_tile)
    result = tune(tmp_path, fleet, trials=3)
    assert (result.reused, result.trials) == (4, 3)
    assert not {*DEFAULTS} & {key(trace) for trace in fleet.runs[:3]}
