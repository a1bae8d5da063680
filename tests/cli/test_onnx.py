"""ONNX models in and out on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import onnx_models
import onnx_qdq as qdq
from command_line import Command, Compiled


def test_a_model_goes_out(compiled: Compiled, qcompile: Command, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    arguments = ("export-onnx", compiled.model, "--calibration", compiled.calibration, "--output", path)
    outcome = qcompile(*arguments, "--engine", "tensorrt", "--symmetric-activations", "--json")
    assert outcome.status == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["layers"] == 3
    assert result["operators"]["Conv"] == 2
    assert result["size"] == path.stat().st_size
    refused = qcompile(*arguments, "--engine", "tensorrt")
    assert refused.status == 1
    assert "--symmetric-activations" in refused.err


def test_a_symbolic_extent_is_asked_for(qcompile: Command, tmp_path: Path) -> None:
    made = qdq.network(qdq.Style())
    made.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    path = onnx_models.save(made, tmp_path / "m.onnx")
    outcome = qcompile("compile", path, "--output", tmp_path / "bundle")
    assert outcome.status == 1
    assert "--dim height=N" in outcome.err
    assert qcompile("compile", path, "--output", tmp_path / "bundle", "--dim", "height").status == 1
