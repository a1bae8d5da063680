"""Every command, for people and as JSON, and how it fails."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, Compiled

from qcompiler.cli import app, compile, options
from qcompiler.config import CompileConfig
from qcompiler.errors import ConfigError
from qcompiler.targets.registry import known

COMMANDS = [
    "compile",
    "analyze",
    "quantize",
    "search",
    "tune",
    "run",
    "evaluate",
    "bench",
    "profile",
    "verify",
    "inspect",
    "migrate",
    "sign",
    "export",
    "export-onnx",
    "targets",
    "demo",
]


def parameters(command: object) -> set[str]:
    import inspect

    assert callable(command)
    return set(inspect.signature(command).parameters)


def test_commands() -> None:
    assert [info.name for info in app.registered_commands] == COMMANDS
    for info in app.registered_commands:
        assert {"json", "traceback"} <= parameters(info.callback)


def test_options_of_compile_are_those_of_the_configuration() -> None:
    own = {"model", "output", "calibration", "json", "traceback"}
    assert parameters(compile.command) - own == set(CompileConfig.option_names())


def test_help_is_printed_without_arguments(qcompile: Command) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        outcome = qcompile(*arguments)
        assert outcome.status == 0
        assert all(f"  {name} " in outcome.out for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["targets", "zen4"],
            "error: unknown target 'zen4'; did you mean x86-znver4? run 'qcompile targets'",
        ),
        (
            ["inspect", "none"],
            "error: bundle none does not exist; give the folder that 'qcompile compile' wrote",
        ),
        (["inspect"], "error: Missing argument"),
        (["inspect", "x", "--deep"], "error: No such option: --deep"),
        (["bogus"], "error: No such command 'bogus'"),
        (["bench", "x", "--threads", "1,a"], "error: --threads is '1,a'; give positive numbers with a comma"),
        (
            ["compile", "m", "--output", "o", "--calibration-method", "best"],
            "error: unknown calibration_method 'best'; known: minmax, moving-average, ",
        ),
        (
            ["compile", "m", "--output", "o", "--observer", "best"],
            "error: unknown calibration_method 'best'; known: ",
        ),
    ],
)
def test_errors_are_one_line_and_status_1(qcompile: Command, arguments: list[str], message: str) -> None:
    outcome = qcompile(*arguments)
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith(message)
    assert "--help)" in outcome.err or ";" in outcome.err, "it says what to do"
    assert outcome.err.count("\n") == 1


def test_traceback_is_shown_on_demand(qcompile: Command) -> None:
    outcome = qcompile("inspect", "none", "--traceback")
    assert outcome.status == 1
    assert "Traceback (most recent call last)" in outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: bundle none does not exist")


def test_faults_of_our_own_are_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end, options.guarded(traceback=False):
        raise KeyError("lost\nkey")
    assert end.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: internal error: KeyError:")
    assert error.endswith("run again with --traceback, and report it\n")
    assert error.count("\n") == 1


def test_lists() -> None:
    assert options.split("--against", None) == ()
    assert options.split("--against", "a, b") == ("a", "b")
    assert options.integers("--threads", "1,2") == (1, 2)
    for text in ("1,", "", "0", "-1", "x"):
        with pytest.raises(ConfigError, match=f"--threads is '{text}'"):
            options.integers("--threads", text)


def test_durations() -> None:
    assert options.seconds("--max-latency", None) is None
    found = [options.seconds("--max-latency", text) for text in ("3ms", "250 us", "0.5s")]
    assert found == pytest.approx([3e-3, 250e-6, 0.5])
    for text in ("3", "", "0ms", "-1ms", "ms", "1e3ms", "3 min"):
        with pytest.raises(ConfigError, match=f"--max-latency is '{text}'"):
            options.seconds("--max-latency", text)


def test_targets(qcompile: Command) -> None:
    text = qcompile("targets")
    assert text.status == 0
    assert all(target.name in text.out for target in known())
    listed = json.loads(qcompile("targets", "--json").out)
    assert [entry["target"]["name"] for entry in listed] == [target.name for target in known()]
    one = json.loads(qcompile("targets", "x86-avx2", "--json").out)
    assert one["target"]["instruction"] == "vpmaddwd"
    assert "vpmaddwd" in qcompile("targets", "x86-avx2").out


def test_inspect(qcompile: Command, compiled: Compiled) -> None:
    text = qcompile("inspect", compiled.bundle)
    assert text.status == 0
    for word in ("x86-avx2", "[1, 3, 8, 8]", "vpmaddwd", "model.so", "Left in float"):
        assert word in text.out
    manifest = json.loads(qcompile("inspect", compiled.bundle, "--json").out)
    assert manifest == json.loads((compiled.bundle / "manifest.json").read_text())


def test_run(qcompile: Command, compiled: Compiled, tmp_path: Path) -> None:
    output = tmp_path / "out.npz"
    text = qcompile("run", compiled.bundle, "--input", compiled.data, "--output", output)
    assert text.status == 0
    assert "24 samples in 24 runs" in text.out
    with np.load(output) as arrays:
        (array,) = arrays.values()
    assert array.shape == (24, 5)
    result = json.loads(qcompile("run", compiled.bundle, "--input", compiled.data, "--json").out)
    assert result["outputs"][0]["shape"] == [24, 5]
    assert result["outputs"][0]["maximum"] == pytest.approx(float(array.max()))


def test_evaluate(qcompile: Command, compiled: Compiled) -> None:
    arguments = ("evaluate", compiled.bundle, "--data", compiled.data, "--model", compiled.model)
    result = json.loads(qcompile(*arguments, "--json").out)
    assert (result["samples"], result["float_top1"]) == (24, 1.0)
    assert result["top1"] == result["agreement"] >= 0.75
    (ratio,) = result["sqnr_db"].values()
    assert ratio > 20
    text = qcompile(*arguments, "--limit", "4").out
    assert "top-1, int8" in text
    assert "SQNR of" in text


def test_verify(qcompile: Command, compiled: Compiled) -> None:
    result = json.loads(qcompile("verify", compiled.bundle, "--data", compiled.data, "--json").out)
    assert (result["samples"], result["fault"]) == (24, None)
    assert [(output["exact"], output["differing"]) for output in result["outputs"]] == [(True, 0)]
    text = qcompile("verify", compiled.bundle, "--data", compiled.data, "--limit", 2)
    assert text.status == 0
    assert "passed" in text.out


def test_profile(qcompile: Command, compiled: Compiled) -> None:
    arguments = ("profile", compiled.bundle, "--threads", 1, "--repeat", 2, "--peak", 100)
    result = json.loads(qcompile(*arguments, "--json").out)
    assert result["peak"] == 100e9
    assert result["dense"]["macs"] == 8 * 8 * (3 * 16 + 16 * 16) * 9 + 16 * 5
    text = qcompile(*arguments).out
    assert "dense, integer" in text
    assert "Peak: 100.0 GMAC/s (given)." in text


def test_static_profile(qcompile: Command, compiled: Compiled) -> None:
    out = qcompile("profile", compiled.bundle, "--static").out
    for word in (
        "Inner loops of",
        "vpmaddwd",
        "Peak of x86-avx2: 32 MAC/cycle",
        "An estimate, not a measurement",
    ):
        assert word in out
    rows = json.loads(qcompile("profile", compiled.bundle, "--static", "--json").out)["rows"]
    assert rows
    assert all(0 < row["bound_share"] <= 1 for row in rows)
    assert "--threads is for a run" in qcompile("profile", compiled.bundle, "--static", "--threads", 1).err


def test_profile_measures_the_peak_of_this_machine(qcompile: Command, compiled: Compiled) -> None:
    result = json.loads(qcompile("profile", compiled.bundle, "--threads", 1, "--repeat", 1, "--json").out)
    hertz = result["peak"] / 32
    assert 0.2e9 < hertz < 10e9, "no processor has that clock"


def test_bench(qcompile: Command, compiled: Compiled) -> None:
    result = json.loads(qcompile("bench", compiled.bundle, "--threads", 1, "--rounds", 1, "--json").out)
    assert [(t["engine"], t["threads"], t["absent"]) for t in result["timings"]] == [("qcompiler", 1, None)]
    assert "times ours" in qcompile("bench", compiled.bundle, "--threads", 1, "--rounds", 1).out


def test_compile_as_json(qcompile: Command, compiled: Compiled, tmp_path: Path) -> None:
    output = tmp_path / "bundle"
    outcome = qcompile(
        "compile",
        compiled.model,
        "--calibration",
        compiled.calibration,
        "--output",
        output,
        "--target",
        "x86-avx2",
        "--no-embed-reference",
        "--json",
    )
    assert outcome.status == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["bundle"] == str(output)
    assert result["manifest"]["target"]["name"] == "x86-avx2"
    failed = qcompile("verify", output, "--data", compiled.data)
    assert failed.status == 1
    assert "compile the model again with --embed-reference" in failed.err


def test_help_does_not_import_the_compiler() -> None:
    code = (
        "import sys; import qcompiler.cli; "
        "print([m for m in ('tvm', 'torch', 'onnxruntime', 'openvino') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.slow
def test_demo(qcompile: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qcompiler.driver import demo

    monkeypatch.setattr(demo, "EPOCHS", 3)
    result = json.loads(qcompile("demo", "--output", tmp_path / "made" / "bundle", "--json").out)
    accuracy = result["evaluation"]
    assert accuracy["samples"] == 500
    assert accuracy["float_top1"] > 0.9
    assert accuracy["top1"] > accuracy["float_top1"] - 0.02
    assert result["verification"]["fault"] is None
    assert [timing["engine"] for timing in result["timings"]["timings"]] == [
        "qcompiler",
        "torch",
        "torch.compile",
    ]
