"""Logs are listed, merged, pruned and exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_tuning import tasks, writer
from tvm.s_tir import meta_schedule as ms

from qcompiler.driver.tuning import log as logs
from qcompiler.driver.tuning import manage
from qcompiler.driver.tuning.decisions import to_json
from qcompiler.driver.tuning.log import MODEL, RECORDS, WORKLOADS, Choice, Record
from qcompiler.errors import TuningLogError
from qcompiler.targets.workload import sketched


def trace(task: int, sketch: int) -> Any:
    return to_json(sketched(tasks()[task].neutral, sketch).trace)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    made = writer(folder)
    for task in (0, 1):
        for sketch in range(3):
            made.append(tasks()[task].neutral.module, Record(trace(task, sketch), (1e-6 * (3 - sketch),)))
    made.choose(tasks()[1].neutral.module, Choice(trace(1, 1), (1.5e-6,), (2e-6,)))
    (folder / MODEL).write_bytes(b"trees")
    return folder


def test_listing(log: Path) -> None:
    listing = manage.listing(log)
    assert [k.name for k in listing.kernels] == [t.name for t in tasks()]
    assert [(k.records, k.seconds, k.gain) for k in listing.kernels] == [
        (3, (pytest.approx(1e-6),), None),
        (3, (1.5e-6,), 0.25),
    ]
    assert listing.faults == ()


def test_export_has_one_schedule_a_kernel(log: Path, tmp_path: Path) -> None:
    written = manage.export(log, tmp_path / "small")
    assert (written.kernels, written.records) == (2, 2)
    small = logs.read(tmp_path / "small")
    assert [small.best(k) for k in (0, 1)] == [logs.read(log).best(k) for k in (0, 1)]
    assert small.choices[1].gain == 0.25
    assert (tmp_path / "small" / MODEL).read_bytes() == b"trees"
    with pytest.raises(TuningLogError, match="is not empty"):
        manage.export(log, tmp_path / "small")


def test_merge_keeps_equal_schedules_once(log: Path, tmp_path: Path) -> None:
    other = writer(tmp_path / "other")
    other.append(tasks()[1].neutral.module, Record(trace(1, 0), (9e-7,)))
    other.append(tasks()[1].neutral.module, Record(trace(1, 3), (4e-6,)))
    written = manage.merge([log, tmp_path / "other"], tmp_path / "both")
    assert (written.kernels, written.records) == (2, 7)
    both = logs.read(tmp_path / "both")
    index = both.find(tasks()[1].neutral.module)
    assert index is not None
    assert {r.seconds for r in both.records[index] if r.trace == trace(1, 0)} == {(9e-7,)}
    assert both.choices[index].gain == 0.25


def test_logs_for_different_things_are_not_merged(log: Path, tmp_path: Path) -> None:
    writer(tmp_path / "other", (1, 2))
    with pytest.raises(TuningLogError, match="only logs of one target"):
        manage.merge([log, tmp_path / "other"], tmp_path / "both")


def test_prune_keeps_the_fastest_and_repairs(log: Path) -> None:
    path = log / WORKLOADS
    first, second = path.read_text().splitlines()
    path.write_text(f"{first[:100]}\n{second}\n")
    records = log / RECORDS
    records.write_text(records.read_text() + '[1, [[["GetS')
    written = manage.prune(log, 2)
    assert (written.kernels, written.records) == (1, 2)
    assert len(written.faults) == 5, "a kernel, its three records, and a torn line"
    after = logs.read(log)
    assert after.faults == []
    assert after.find(tasks()[1].neutral.module) == 1, "kernels keep their numbers"
    assert [r.score for r in after.records[1]] == pytest.approx([1e-6, 2e-6])
    assert after.choices[1].gain == 0.25
    assert len(ms.database.JSONDatabase(str(log / WORKLOADS), str(log / RECORDS), allow_missing=False)) == 2
    assert [k.name for k in manage.listing(log).kernels] == [tasks()[1].name]
