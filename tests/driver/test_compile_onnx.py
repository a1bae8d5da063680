"""From an ONNX file to a bundle: float models are quantized here, QDQ models keep their scales."""

from __future__ import annotations

import importlib.util
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import onnx_qdq as qdq
import pytest
import torch
from onnx import helper

import qcompiler
from qcompiler import reference
from qcompiler.config import CompileConfig
from qcompiler.driver import quantized as driver
from qcompiler.driver.compile import CompileResult
from qcompiler.driver.evaluate import evaluate
from qcompiler.driver.float_operators import float_operators
from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.frontend import capture
from qcompiler.frontend.importer import import_program
from qcompiler.frontend.onnx import load_onnx
from qcompiler.passes import pipeline
from qcompiler.passes.graph import bindings, op_name
from qcompiler.quantization import respell

Array = np.ndarray[Any, Any]

STYLES = {
    "u8s8": qdq.Style(),
    "s8s8": qdq.Style(activation=np.int8),
    "per-tensor": qdq.Style(per_channel=False),
    "u8u8-symmetric": qdq.Style(weight=np.uint8, weight_zero_point=128),
    "float-bias-matmul": qdq.Style(int_bias=False, matmul=True),
    "no-relu": qdq.Style(clipped=False),
}


LAYERS = ("qc.conv2d", "qc.dense")


def compiled(made: Any, folder: Path, **options: Any) -> CompileResult:
    path = onnx_models.save(made, folder / "m.onnx")
    return qcompiler.compile(path, output=folder / "bundle", dim=("batch=2",), **options)


def integer(made: Any, folder: Path) -> pipeline.Integer:
    """The integer module of a QDQ model."""
    program = load_onnx(onnx_models.save(made, folder / "m.onnx"), {"batch": 2})
    return pipeline.to_integer(import_program(respell(program)), pipeline.Dump(None))


def outputs(made: Any, folder: Path) -> list[Array]:
    """What the integer module of a QDQ model computes for eight batches; every bit is specified."""
    interpreter = reference.Interpreter(integer(made, folder).module)
    results = [interpreter.run([qdq.images(seed)])[0] for seed in range(8)]
    assert all(result.exact for result in results)
    return [result.array for result in results]


@pytest.mark.parametrize("name", STYLES)
def test_a_qdq_model_becomes_integers_that_agree_with_onnx_runtime(name: str, tmp_path: Path) -> None:
    made = qdq.network(STYLES[name])
    found = np.concatenate(outputs(made, tmp_path))
    wanted = np.concatenate([onnx_models.run(made, {"x": qdq.images(seed)})[0] for seed in range(8)])
    steps = np.rint((found - wanted) / np.float32(qdq.OUTPUT_SCALE))
    # ONNX Runtime sums float32, and a sum near a rounding border may fall on its other side, in any layer.
    assert np.abs(steps).max() <= 1
    assert np.mean(steps != 0) < 0.1
    module = integer(made, tmp_path)
    names = [binding.var.name for binding in bindings(module.module) if op_name(binding.value) in LAYERS]
    assert names == ["stem", "body", "linear"]
    assert float_operators(module.module, module.notes, []) == ()


def test_int8_and_uint8_activations_are_the_same_model(tmp_path: Path) -> None:
    unsigned, signed = (outputs(qdq.network(STYLES[name]), tmp_path) for name in ("u8s8", "s8s8"))
    assert np.array_equal(unsigned, signed)


def test_the_library_gives_the_reference_s_bits(tmp_path: Path) -> None:
    made = qdq.network(STYLES["s8s8"])
    result = compiled(made, tmp_path)
    assert result.manifest.float_operators == ()
    model = qcompiler.load(result.bundle)
    for seed, wanted in enumerate(outputs(made, tmp_path)):
        assert np.array_equal(model.run(qdq.images(seed))[0], wanted)
    np.savez(tmp_path / "d.npz", x=np.concatenate([qdq.images(k) for k in range(8)]))
    # The model itself, run by PyTorch with the shapes of the bundle.
    found = evaluate(result.bundle, tmp_path / "d.npz", model=str(tmp_path / "m.onnx"))
    assert found.agreement == 1.0
    assert found.sqnr_db["y"] > 25


def test_asymmetric_weights_are_rounded_anew_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = qdq.network(qdq.Style(weight=np.uint8, weight_zero_point=100))
    with caplog.at_level(logging.WARNING):
        found = np.concatenate(outputs(made, tmp_path))
    warnings = [record.getMessage() for record in caplog.records if "rounded anew" in record.getMessage()]
    assert [w.partition(":")[0] for w in warnings] == [
        "Conv at node 'stem'",
        "Conv at node 'body'",
        "Gemm at node 'linear'",
    ]
    wanted = np.concatenate([onnx_models.run(made, {"x": qdq.images(seed)})[0] for seed in range(8)])
    # Weights of 155 steps are rounded to 127: an error of 0.6 of their steps at most, about 1 % of the output.
    assert np.abs(found - wanted).max() <= 0.05 * np.abs(wanted).max()


def float_network() -> Any:
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["a"], "/features/features.0/Conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["r"], "/features/features.1/Relu"),
        helper.make_node("Conv", ["r", "w0"], ["b"], "/features/features.2"),
        helper.make_node("GlobalAveragePool", ["b"], ["c"], "pool"),
        helper.make_node("Flatten", ["c"], ["d"], "flat"),
        helper.make_node("MatMul", ["d", "w2"], ["e"], "/head/MatMul"),
        helper.make_node("Add", ["b2", "e"], ["f"], "/head/Add"),
        helper.make_node("Softmax", ["f"], ["y"], "softmax"),
    ]
    constants = {
        "w1": rng.standard_normal((16, 3, 3, 3)).astype(np.float32),
        "w0": rng.standard_normal((16, 16, 1, 1)).astype(np.float32),
        "b1": rng.standard_normal(16).astype(np.float32),
        "w2": rng.standard_normal((16, 5)).astype(np.float32),
        "b2": rng.standard_normal(5).astype(np.float32),
    }
    return onnx_models.model(nodes, {"x": ["batch", 3, 8, 8]}, ["y"], constants)


def calibration() -> list[Array]:
    return [qdq.images(seed) for seed in range(4)]


def test_a_float_model_is_calibrated_and_its_layers_are_called_as_its_nodes(tmp_path: Path) -> None:
    made = float_network()
    with pytest.raises(CalibrationError, match="calibration data is missing"):
        compiled(made, tmp_path)
    result = compiled(made, tmp_path, calibration=calibration(), keep_float=("/features/features.2",))
    assert [layer.name for layer in result.manifest.layers if layer.macs] == [
        "/features/features_0/Conv",
        "/features/features_2",
        "/head/MatMul",
    ]
    assert [record.operator for record in result.manifest.float_operators] == ["conv2d", "softmax"]
    assert "keep_float" in result.manifest.float_operators[0].reason
    (spec,) = result.manifest.inputs
    assert (spec.name, spec.shape) == ("x", (2, 3, 8, 8))
    assert [spec.name for spec in result.manifest.outputs] == ["y"]
    x = qdq.images(9)
    (found,) = qcompiler.load(result.bundle).run(x)
    (wanted,) = onnx_models.run(made, {"x": x})
    # Probabilities of an int8 network whose logits have steps of about 0.05.
    assert np.abs(found - wanted).max() < 0.1


def test_example_inputs_fix_the_extents(tmp_path: Path) -> None:
    path = onnx_models.save(qdq.network(STYLES["u8s8"]), tmp_path / "m.onnx")
    program = driver.program_of(path, (torch.zeros(3, 3, 8, 8),), CompileConfig())
    assert capture.user_inputs(program)[0].shape == (3, 3, 8, 8)
    with pytest.raises(
        ConfigError, match=r"input 'x' has shape \[any, 3, 8, 8\] in the file, not \[3, 3, 9, 8\]"
    ):
        qcompiler.compile(path, (torch.zeros(3, 3, 9, 8),), output=tmp_path / "other")


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = onnx_models.save(qdq.network(STYLES["u8s8"]), tmp_path / "m.onnx")
    with pytest.raises(ConfigError, match="dim 'bath' is no symbolic extent of the model; it has: batch"):
        qcompiler.compile(path, output=tmp_path / "bundle", dim=("bath=2",))
    with pytest.raises(ConfigError, match="dim is 'batch'; give NAME=N"):
        qcompiler.compile(path, output=tmp_path / "bundle", dim=("batch",))
    program = torch.export.export(torch.nn.ReLU(), (torch.zeros(2),))
    with pytest.raises(ConfigError, match="other models have none"):
        qcompiler.compile(program, output=tmp_path / "bundle", dim=("batch=2",))
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else find(name))
    with pytest.raises(ConfigError, match=r"need the package onnx: pip install 'qcompiler\[onnx\]'"):
        qcompiler.compile(path, output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
