"""One definition of the options of quantization, for every command that quantizes."""

from __future__ import annotations

import inspect
import json
from dataclasses import fields
from pathlib import Path

import pytest
from command_line import Command, Compiled

from qcompiler.cli import app
from qcompiler.cli.configuration import ALL, QUANTIZATION, config_of, configured
from qcompiler.cli.options import Json, Traceback
from qcompiler.config import QUANTIZATION_OPTIONS, CompileConfig, Methods
from qcompiler.errors import ConfigError

COMMANDS = {info.name: info.callback for info in app.registered_commands}
QUANTIZING = ("compile", "quantize", "analyze", "search", "tune", "migrate", "export-onnx")


def test_all_fields_have_an_option() -> None:
    assert set(ALL) == set(CompileConfig.option_names())
    assert {"effort", *(f.name for f in fields(Methods))} <= set(QUANTIZATION_OPTIONS)


@pytest.mark.parametrize("name", QUANTIZING)
def test_commands_that_quantize_have_the_same_options(name: str) -> None:
    callback = COMMANDS[name]
    assert callback is not None
    found = inspect.signature(callback).parameters
    assert set(QUANTIZATION_OPTIONS) <= set(found)
    compile_command = COMMANDS["compile"]
    assert compile_command is not None
    own = inspect.signature(compile_command).parameters
    for option in QUANTIZATION_OPTIONS:
        assert found[option].annotation == own[option].annotation
        assert found[option].default == own[option].default


def test_a_command_gets_its_configuration() -> None:
    seen = []

    @configured(*QUANTIZATION, "dim")
    def command(
        *, model: str, config: CompileConfig, more: int = 1, json: Json = False, traceback: Traceback = False
    ) -> None:
        seen.append((model, config, more))

    parameters = list(inspect.signature(command).parameters)
    assert parameters == ["model", *QUANTIZATION, "dim", "more", "json", "traceback"]
    given = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    command(**{**given, "model": "m", "keep_float": ["a", "b"], "dim": ["n=2"], "smooth": True})
    assert seen == [("m", CompileConfig(keep_float=("a", "b"), dim=("n=2",), smooth=True), 1)]


def test_configurations_of_options() -> None:
    config = config_of({"layer_precision": ["a.b=bf16", "c=fp32"], "keep_float": None})
    assert config == CompileConfig(layer_precision={"a.b": "bf16", "c": "fp32"})
    assert config_of({}) == CompileConfig()
    with pytest.raises(ConfigError, match="give NAME=PRECISION"):
        config_of({"layer_precision": ["fp32"]})
    with pytest.raises(ConfigError, match="unknown effort 'most'"):
        config_of({"effort": "most"})


def test_quantize_and_export_say_what_their_options_gained(
    qcompile: Command, compiled: Compiled, tmp_path: Path
) -> None:
    data = ("--calibration", compiled.calibration, "--target", "x86-avx2", "--no-progress")
    options = ("--equalize", "--adaptive-rounding", "--bias-correction", "fast", "--skip-first")
    archive = tmp_path / "q.pt2"
    shown = qcompile("quantize", compiled.model, *data, *options, "--output", archive)
    assert shown.status == 0, shown.err
    for name in ("equalize", "adaptive_rounding", "bias_correction fast", "skip_first"):
        assert name in shown.out
    exported = qcompile(
        "export-onnx", compiled.model, *data, *options, "--output", tmp_path / "q.onnx", "--json"
    )
    assert exported.status == 0, exported.err
    names = [entry["name"] for entry in json.loads(exported.out)["optimizations"]]
    assert names == ["equalize", "adaptive_rounding", "bias_correction fast"]

    again = qcompile("compile", archive, "--effort", "max", "--output", tmp_path / "bundle")
    assert again.status == 1
    assert "effort is 'max', and the model is quantized already" in again.err
    assert not (tmp_path / "bundle").exists()


def test_migrate_quantizes_a_model_as_asked_and_a_bundle_never(
    qcompile: Command, compiled: Compiled, tmp_path: Path
) -> None:
    options = ("--bias-correction", "empirical", "--no-progress", "--to", "x86-avx512-vnni")
    moved = qcompile(
        "migrate", compiled.model, "--from", "x86-avx2", "--calibration", compiled.calibration, *options,
        "--output", tmp_path / "moved",
    )  # fmt: skip
    assert moved.status == 0, moved.err
    assert "bias_correction empirical" in moved.out
    refused = qcompile("migrate", compiled.bundle, *options, "--output", tmp_path / "never")
    assert refused.status == 1
    assert "bias_correction is 'empirical', and bundle" in refused.err
    assert not (tmp_path / "never").exists()
