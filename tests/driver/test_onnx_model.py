"""A quantized model out as QDQ ONNX: its form, what ONNX Runtime makes of it, and the way back in."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.export import ExportedProgram

from qcompiler import reference
from qcompiler.config import CompileConfig
from qcompiler.driver.onnx_model import export_onnx, to_qdq
from qcompiler.driver.quantized import program_of, quantized_program
from qcompiler.errors import ConfigError
from qcompiler.frontend.importer import import_program
from qcompiler.frontend.onnx import load_onnx
from qcompiler.passes import pipeline
from qcompiler.quantization import respell
from qcompiler.targets import registry

Array = np.ndarray[Any, Any]


class Network(nn.Module):
    """A residual block with a gate, and linear layers on two and on three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.gate = nn.Conv2d(8, 8, 1)
        self.tokens = nn.Linear(8, 16)
        self.classify = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        y = nn.functional.relu6(self.depthwise(x) + x)
        y = y * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(y, 1)))
        tokens = nn.functional.hardswish(self.tokens(y.flatten(2).transpose(1, 2)))
        return self.classify(nn.functional.max_pool2d(tokens.unsqueeze(1), (16, 1)).flatten(1)[:, :16])


def images(seed: int) -> torch.Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


BATCHES = [images(seed) for seed in range(4)]


def quantized(**options: Any) -> ExportedProgram:
    config = CompileConfig(**options)
    program = program_of(network(), (BATCHES[0],), config)
    return quantized_program(program, registry.resolve("x86-avx512-vnni"), config, BATCHES).program


def network() -> nn.Module:
    torch.manual_seed(0)
    model = Network().eval()
    nn.init.uniform_(model.norm.bias)  # a bias of zeros is left out of the file
    return model


def integer(program: ExportedProgram) -> Any:
    return pipeline.to_integer(import_program(program), pipeline.Dump(None)).module


def outputs(module: Any) -> Array:
    interpreter = reference.Interpreter(module)
    results = [interpreter.run([images(seed).numpy()])[0] for seed in range(10, 18)]
    assert all(result.exact for result in results)
    return np.concatenate([result.array for result in results])


def peer_outputs(made: Any) -> Array:
    name = made.graph.input[0].name
    runs = [onnx_models.run(made, {name: images(seed).numpy()}, optimized=True) for seed in range(10, 18)]
    return np.concatenate([run[0] for run in runs])


def constants(made: Any) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}


@pytest.fixture(scope="module")
def asymmetric() -> ExportedProgram:
    return quantized()


@pytest.fixture(scope="module")
def symmetric() -> ExportedProgram:
    return quantized(symmetric_activations=True)


def parameters(made: Any, operator: str) -> list[tuple[Array | None, Array, Array]]:
    """For each node of ``operator``, its constant input or None, its scale and zero point."""
    held = constants(made)
    nodes = [n for n in made.graph.node if n.op_type == operator]
    return [(held.get(n.input[0]), held[n.input[1]], held[n.input[2]]) for n in nodes]


def test_the_form_for_onnx_runtime(asymmetric: ExportedProgram) -> None:
    made = to_qdq(asymmetric)
    assert not [n for n in made.graph.node if n.op_type in ("Constant", "Cast", "Identity")]
    assert {zero.dtype for _, _, zero in parameters(made, "QuantizeLinear")} == {np.dtype(np.uint8)}
    dequantized = parameters(made, "DequantizeLinear")
    weights = [c for c, _, _ in dequantized if c is not None and c.dtype == np.int8]
    biases = [(c, scale) for c, scale, _ in dequantized if c is not None and c.dtype == np.int32]
    assert len(weights) == 5
    # The linear layer on three dimensions is a MatMul and an Add, which has no bias to quantize.
    assert len(biases) == 4
    assert all(scale.shape == bias.shape for bias, scale in biases)
    producers = {name: node.op_type for node in made.graph.node for name in node.output}
    (matmul,) = [n for n in made.graph.node if n.op_type == "MatMul"]
    assert producers[matmul.input[1]] == "DequantizeLinear"


@pytest.mark.parametrize("engine", ["onnxruntime", "tensorrt"])
def test_onnx_runtime_computes_the_same_up_to_roundings(engine: Any, symmetric: ExportedProgram) -> None:
    made = to_qdq(symmetric, engine)
    found, wanted = outputs(integer(symmetric)), peer_outputs(made)
    # ONNX Runtime rounds some products and sums otherwise. The last layer's result is real: a step of a value that it
    # reads moves it by about 1/256 of its range, a bias that is not rounded to the accumulator's unit by 1e-5 of it.
    shares = np.abs(found - wanted) / np.abs(wanted).max()
    assert shares.max() <= 0.02
    assert np.mean(shares > 1e-4) < 0.3


def test_the_way_back_gives_every_bit(asymmetric: ExportedProgram, tmp_path: Path) -> None:
    path = onnx_models.save(to_qdq(asymmetric), tmp_path / "m.onnx")
    again = integer(respell(load_onnx(path)))
    assert np.array_equal(outputs(again), outputs(integer(asymmetric)))


def test_the_form_for_tensorrt(symmetric: ExportedProgram, tmp_path: Path) -> None:
    made = to_qdq(symmetric, "tensorrt")
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        for _, _, zero in parameters(made, operator):
            assert zero.dtype == np.int8
            assert not zero.any()
    path = onnx_models.save(made, tmp_path / "m.onnx")
    again = integer(respell(load_onnx(path)))
    assert np.array_equal(outputs(again), outputs(integer(symmetric)))


def test_zero_points_that_tensorrt_lacks_are_refused(asymmetric: ExportedProgram) -> None:
    with pytest.raises(
        ConfigError, match=r"TensorRT takes int8 activations with zero point 0 .* --symmetric-activations"
    ):
        to_qdq(asymmetric, "tensorrt")


def test_the_file_is_written_and_described(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.onnx"
    config = CompileConfig(keep_float=("gate",))
    result = export_onnx(network(), config, calibration=BATCHES, output=path, example_inputs=(BATCHES[0],))
    assert result.path == path
    assert result.size == path.stat().st_size
    assert result.layers == 4
    assert result.operators["Conv"] == 3
    # The sigmoid between it and the product has no quantized input any more.
    assert [r.operator for r in result.float_operators] == ["conv2d", "sigmoid"]
    assert result.float_operators[0].place.startswith("gate")
    assert [p.name for p in path.parent.iterdir()] == ["m.onnx"]


def test_refusals(asymmetric: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def export(**options: Any) -> None:
        export_onnx(asymmetric, CompileConfig(), calibration=None, output=tmp_path / "m.onnx", **options)

    with pytest.raises(ConfigError, match="unknown engine 'ncnn'; known: onnxruntime, tensorrt"):
        export(engine="ncnn")
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name)
    )
    with pytest.raises(ConfigError, match=r"needs the package onnxscript: pip install 'qcompiler\[onnx\]'"):
        export()
    assert not (tmp_path / "m.onnx").exists()


def test_one_scale_for_a_tensor_is_a_scalar() -> None:
    # ONNX Runtime's integer pooling refuses parameters with an axis.
    made = to_qdq(quantized())
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in made.graph.initializer}
    shapes = [
        constants[name].shape
        for node in made.graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        for name in list(node.input)[1:]
        if constants[name].size == 1
    ]
    assert shapes
    assert set(shapes) == {()}
