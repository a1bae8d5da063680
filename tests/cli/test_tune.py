"""``qcompile tune``, ``qcompile logs``, and ``qcompile compile`` with what they made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Command, Compiled
from small_tuning import tasks, writer

from qcompiler.cli.configuration import QUANTIZATION
from qcompiler.config import TuneConfig
from qcompiler.driver.tuning.decisions import to_json
from qcompiler.driver.tuning.log import KEY, RECORDS, Record
from qcompiler.errors import ConfigError
from qcompiler.targets.workload import sketched


@pytest.mark.slow
def test_tune_then_compile_here_and_elsewhere(qcompile: Command, compiled: Compiled, tmp_path: Path) -> None:
    """The exported log gives the same library, byte for byte."""
    log, small = tmp_path / "log", tmp_path / "small"
    arguments = (
        "--calibration",
        compiled.calibration,
        "--log",
        log,
        "--threads",
        1,
        "--trials",
        8,
        "--batch",
        2,
    )
    outcome = qcompile("tune", compiled.model, *arguments)
    assert outcome.status == 0, outcome.err
    assert "default" in outcome.out
    assert "8, of them failed: 0, with a wrong output: 0" in outcome.out
    assert "expected" in outcome.err
    listed = json.loads(qcompile("logs", "list", log, "--json").out)
    assert sum(kernel["records"] for kernel in listed["kernels"]) == 8
    assert qcompile("logs", "export", log, "--output", small).status == 0
    libraries = []
    for given in (log, small):
        bundle = tmp_path / f"bundle-{given.name}"
        made = qcompile(
            "compile", compiled.model, "--calibration", compiled.calibration, "--log", given, "--no-log",
            "--output", bundle,
        )  # fmt: skip
        assert made.status == 0, made.err
        assert "tuned (1 threads)" in made.out
        libraries.append((bundle / "model.so").read_bytes())
        manifest = json.loads((bundle / "manifest.json").read_text())
        assert manifest["tuned_threads"] == [1]
        assert {layer["schedule"] for layer in manifest["layers"] if layer["schedule"]} == {"tuned"}
        assert qcompile("verify", bundle, "--data", compiled.data).status == 0
    assert libraries[0] == libraries[1]
    # A second run goes on where the first one ended.
    again = json.loads(qcompile("tune", compiled.model, *arguments[:-4], "--trials", 2, "--json").out)
    assert (again["reused"], again["failed"]) == (8, 0)


def test_logs(qcompile: Command, tmp_path: Path) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for seconds, folder in enumerate(folders, 1):
        for task in tasks():
            trace = to_json(sketched(task.neutral, seconds).trace)
            writer(folder).append(task.neutral.module, Record(trace, (1e-6 * seconds,)))
    assert tasks()[0].name in qcompile("logs", "list", folders[0]).out
    merged = tmp_path / "merged"
    assert "records  4" in qcompile("logs", "merge", *folders, "--output", merged).out
    with open(merged / RECORDS, "a", encoding="utf-8") as file:
        file.write("torn")
    outcome = qcompile("logs", "prune", merged, "--keep", 1)
    assert outcome.status == 0
    assert "the line has no end" in outcome.out
    listed = json.loads(qcompile("logs", "list", merged, "--json").out)
    assert [(kernel["records"], kernel["seconds"]) for kernel in listed["kernels"]] == [(1, [1e-6])] * 2
    assert listed["faults"] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trials", "0"], "error: trials is 0; it must be at least 1"),
        (["--minutes", "0"], "error: minutes is 0.0; it must be above 0"),
        (["--min-gain", "2"], "error: min_gain is 2.0; it must be at least 0 and below 1"),
        (["--rpc", "here"], "error: rpc and key go together"),
        (["--rpc", "here", "--key", "k"], "error: rpc is 'here'; give HOST:PORT"),
        (
            ["--rpc", "127.0.0.1:9", "--key", "k"],
            "error: threads is not given; with rpc give the numbers of threads",
        ),
        (["--threads", "1000"], "error: threads is 1000; this process may use "),
        (["--layers", "nowhere.*"], "error: no layer matches 'nowhere.*'; layers that can be tuned: "),
    ],
)
def test_refusals(
    qcompile: Command, compiled: Compiled, tmp_path: Path, arguments: list[str], message: str
) -> None:
    outcome = qcompile(
        "tune", compiled.model, "--calibration", compiled.calibration, "--log", tmp_path / "log", *arguments
    )
    assert outcome.status == 1
    assert outcome.err.splitlines()[-1].startswith(message)


def test_a_log_for_another_target_is_refused(qcompile: Command, compiled: Compiled, tmp_path: Path) -> None:
    (tmp_path / KEY).write_text(
        json.dumps({"format": 1, "target": {"name": "x"}, "schedule_version": 1, "tvm": "0", "threads": [1]})
    )
    compile_options = ("--calibration", compiled.calibration, "--output", tmp_path / "b", "--log", tmp_path)
    for outcome in (
        qcompile("compile", compiled.model, *compile_options),
        qcompile("tune", compiled.model, "--calibration", compiled.calibration, "--log", tmp_path),
    ):
        assert outcome.status == 1
        assert "tuning log" in outcome.err
    assert qcompile("logs", "list", tmp_path / "none").err.startswith("error: ")


def test_options_are_those_of_the_configurations() -> None:
    import inspect

    from qcompiler.cli import tune as command

    own = {"model", "calibration", "json", "traceback"}
    known = {*TuneConfig.__dataclass_fields__, *QUANTIZATION, "plan", "dim", "progress"}
    assert set(inspect.signature(command.command).parameters) - own == known
    with pytest.raises(ConfigError, match="threads"):
        TuneConfig(threads=(0,))
