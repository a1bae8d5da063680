"""A log survives kills and neighbours, says what it cannot read, and is refused for anything but its own target."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tvm_ffi
from small_tuning import TARGET, tasks, writer
from tvm.s_tir import meta_schedule as ms

from qcompiler.driver.tuning import log as logs
from qcompiler.driver.tuning.decisions import to_json
from qcompiler.driver.tuning.log import CHOICES, KEY, RECORDS, WORKLOADS, Choice, Record
from qcompiler.errors import TuningLogError
from qcompiler.targets import registry
from qcompiler.targets.workload import sketched


def traces(index: int) -> list[Any]:
    task = tasks()[index]
    return [to_json(sketched(task.neutral, k).trace) for k in range(len(task.neutral.sketches))]


def fill(folder: Path) -> None:
    """Two kernels; the first has two records, the second one."""
    log = writer(folder)
    log.append(tasks()[0].neutral.module, Record(traces(0)[0], (3e-6,)))
    log.append(tasks()[1].neutral.module, Record(traces(1)[0], (5e-6,)))
    log.append(tasks()[0].neutral.module, Record(traces(0)[-1], (2e-6,)))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    fill(tmp_path)
    log = logs.read(tmp_path)
    assert log.faults == []
    assert [log.find(t.neutral.module) for t in tasks()] == [0, 1]
    assert [r.seconds for r in log.records[0]] == [(3e-6,), (2e-6,)]
    assert log.best(0) == Record(traces(0)[-1], (2e-6,))
    writer(tmp_path).choose(tasks()[0].neutral.module, Choice(traces(0)[0], (2.9e-6,), (2.9e-6,)))
    assert logs.read(tmp_path).best(0) == Record(traces(0)[0], (2.9e-6,))


def test_a_writer_sees_kernels_that_another_one_adds_or_takes_away(tmp_path: Path) -> None:
    ours, theirs = writer(tmp_path), writer(tmp_path)
    first, second = (t.neutral.module for t in tasks())
    ours.append(first, Record(traces(0)[0], (3e-6,)))
    theirs.append(second, Record(traces(1)[0], (5e-6,)))
    ours.append(second, Record(traces(1)[-1], (4e-6,)))
    log = logs.read(tmp_path)
    assert [log.find(first), log.find(second)] == [0, 1]
    assert [len(log.workloads), len(log.records[0]), len(log.records[1])] == [2, 1, 2]
    (tmp_path / WORKLOADS).unlink()
    (tmp_path / RECORDS).unlink()
    ours.append(second, Record(traces(1)[0], (5e-6,)))
    log = logs.read(tmp_path)
    assert log.faults == []
    assert log.find(second) == 0


def test_metaschedule_reads_it_as_it_is(tmp_path: Path) -> None:
    fill(tmp_path)
    database = ms.database.JSONDatabase(
        str(tmp_path / WORKLOADS), str(tmp_path / RECORDS), allow_missing=False
    )
    assert len(database) == 3
    task = tasks()[0]
    token = database.commit_workload(task.neutral.module)
    assert [float(r.run_secs[0]) for r in database.get_top_k(token, 5)] == [2e-6, 3e-6]
    found = database.query_schedule(task.neutral.module, None, "main")
    assert tvm_ffi.structural_equal(found.mod, sketched(task.neutral, len(task.neutral.sketches) - 1).mod)


def test_a_torn_line_is_reported_and_ended_by_the_next_writer(tmp_path: Path) -> None:
    fill(tmp_path)
    for name in (WORKLOADS, RECORDS):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[:-40])
    log = logs.read(tmp_path)
    assert sorted(fault.split(": skipped")[0] for fault in log.faults) == sorted(
        [f"{tmp_path / WORKLOADS}:2", f"{tmp_path / RECORDS}:3", f"{tmp_path / RECORDS}:2"]
    ), "the second record is of the kernel that is torn"
    assert log.find(tasks()[0].neutral.module) == 0
    writer(tmp_path).append(tasks()[1].neutral.module, Record(traces(1)[0], (4e-6,)))
    log = logs.read(tmp_path)
    assert log.find(tasks()[1].neutral.module) == 2, "the torn line keeps its number"
    assert log.records[2] == [Record(traces(1)[0], (4e-6,))]
    assert len(log.records[0]) == 1
    assert f"{tmp_path / RECORDS}:3: skipped" in " ".join(log.faults)


@pytest.mark.parametrize(
    "line", ["not json", "[0]", "[9, [[[],[]],[1e-6],null,null]]", "[0, [[[],[]],[1e10],null,null]]", "{}", "[0,[1,2,3,4]]"]
)  # fmt: skip
def test_a_line_that_is_no_record_is_reported_and_skipped(tmp_path: Path, line: str) -> None:
    fill(tmp_path)
    path = tmp_path / RECORDS
    first, *others = path.read_text().splitlines()
    path.write_text("\n".join([first, line, *others]) + "\n")
    log = logs.read(tmp_path)
    (fault,) = log.faults
    assert fault.startswith(f"{path}:2: skipped: ")
    assert [len(log.records[k]) for k in (0, 1)] == [2, 1]


def test_a_kernel_that_cannot_be_decoded_is_reported_and_skipped(tmp_path: Path) -> None:
    fill(tmp_path)
    path = tmp_path / WORKLOADS
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    path.write_text(json.dumps([first[0], first[1][:4000]]) + "\n" + json.dumps(second) + "\n")
    log = logs.read(tmp_path)
    assert log.find(tasks()[0].neutral.module) is None
    assert log.find(tasks()[1].neutral.module) == 1
    assert log.faults[0].startswith(f"{path}:1: skipped: ")


def test_another_target_is_refused(tmp_path: Path) -> None:
    fill(tmp_path)
    key = logs.read_key(tmp_path)
    key.check(tmp_path, TARGET)
    other = next(t for t in registry.known() if t.name != TARGET.name)
    with pytest.raises(TuningLogError, match=f"is of {TARGET.name}"):
        key.check(tmp_path, other)
    # What a hypervisor hides, or how large a cache is, changes no schedule.
    key.check(tmp_path, dataclasses.replace(TARGET, l2_bytes=1 << 22, llvm_features=("-gfni",)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("schedule_version", 0, "of schedule version 0, this is schedule version"),
        ("tvm", "0.1", "of TVM 0.1"),
    ],
)
def test_another_version_is_refused(tmp_path: Path, field: str, value: object, message: str) -> None:
    fill(tmp_path)
    path = tmp_path / KEY
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(TuningLogError, match=message):
        logs.read_key(tmp_path).check(tmp_path, TARGET)
    with pytest.raises(TuningLogError, match="is for something else"):
        writer(tmp_path)


def test_other_threads_are_not_mixed(tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(TuningLogError, match="threads"):
        writer(tmp_path, (1, 2))


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 9}'])
def test_a_bad_key_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(TuningLogError, match="is no tuning log"):
        logs.read(tmp_path)
    (tmp_path / KEY).write_text(text)
    with pytest.raises(TuningLogError, match=r"cannot be read|has format 9"):
        logs.read(tmp_path)


_NEIGHBOUR = """
import sys
from pathlib import Path
sys.path[:0] = [{tests!r}, {quantization!r}]
from small_tuning import tasks, writer
from qcompiler.driver.tuning.decisions import to_json
from qcompiler.driver.tuning.log import Record
from qcompiler.targets.workload import sketched
log = writer(Path({folder!r}))
for turn in range(20):
    for task in (tasks() if {forward} else tasks()[::-1]):
        log.append(task.neutral.module, Record(to_json(sketched(task.neutral, 0).trace), (1e-6 * (1 + turn),)))
"""


def test_two_processes_write_into_one_folder(tmp_path: Path) -> None:
    here = Path(__file__).resolve().parents[2]
    programs = [
        _NEIGHBOUR.format(
            tests=str(here), quantization=str(here / "quantization"), folder=str(tmp_path), forward=forward
        )
        for forward in (True, False)
    ]
    processes = [subprocess.Popen([sys.executable, "-c", p], stderr=subprocess.PIPE) for p in programs]
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    log = logs.read(tmp_path)
    assert log.faults == []
    assert len(log.workloads) == 2
    assert [len(log.records[k]) for k in (0, 1)] == [40, 40]
    assert sorted(log.find(t.neutral.module) or 0 for t in tasks()) == [0, 1]


def test_a_choice_is_of_a_kernel_in_the_log(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / CHOICES).write_text(
        '{"workload": 7, "trace": [[], []], "seconds": [1], "default_seconds": [1]}\n'
    )
    assert "no kernel can be read on line 8" in logs.read(tmp_path).faults[0]
