"""ONNX files as other quantizers write them: they compile, every bit is verified, and ONNX Runtime agrees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qcompiler
from qcompiler.driver.compile import CompileResult
from qcompiler.driver.verify import verify

Array = np.ndarray[Any, Any]

SHAPE = (1, 3, 8, 8)


class Network(nn.Module):
    """Convolution with batch norm, depthwise with relu6, a residual sum, pooling, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.depthwise, self.point = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        x = F.relu(x + self.point(F.relu6(self.depthwise(x))))
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


def samples(count: int, seed: int) -> Array:
    return np.random.default_rng(seed).standard_normal((count, *SHAPE[1:])).astype(np.float32)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


def check(path: Path, folder: Path) -> CompileResult:
    """Compiles a file, verifies it, and compares it with ONNX Runtime."""
    x = samples(16, seed=99)
    np.savez(folder / "x.npz", x=x)
    result = qcompiler.compile(path, output=folder / "bundle")
    verified = verify(result.bundle, folder / "x.npz")
    assert verified.fault is None
    assert verified.samples == 16
    compiled = qcompiler.load(result.bundle, threads=1)
    found = np.concatenate([compiled.run(sample[None])[0] for sample in x])
    wanted = np.concatenate([onnx_models.run(path, {"x": sample[None]})[0] for sample in x])
    # Where a sum lies near a rounding border, one step of one activation: below 1 % of the outputs' range.
    assert np.abs(found - wanted).max() < 0.01 * np.ptp(wanted)
    return result


@pytest.mark.slow
def test_a_model_of_nncf(network: nn.Module, tmp_path: Path) -> None:
    nncf = pytest.importorskip("nncf", reason="nncf is not installed: pip install 'qcompiler[peers]'")
    simple = tmp_path / "float.onnx"
    torch.onnx.export(
        network, (torch.zeros(SHAPE),), simple, input_names=["x"], dynamo=True, external_data=False, verbose=False
    )  # fmt: skip
    data = nncf.Dataset(list(samples(16, seed=0)), lambda image: {"x": image[None]})
    made = nncf.quantize(onnx.load(simple), data, subset_size=16)
    kinds = [node.op_type for node in made.graph.node]
    assert "QuantizeLinear" in kinds
    onnx.save(made, tmp_path / "nncf.onnx")
    result = check(tmp_path / "nncf.onnx", tmp_path)
    assert result.manifest.float_operators == ()
    layers = [layer for layer in result.manifest.layers if layer.operator in ("conv2d", "dense")]
    assert len(layers) == 4
    assert all(layer.accumulator_bound for layer in layers)


def test_a_model_of_torch(network: nn.Module, tmp_path: Path) -> None:
    """PT2E with torchao's own quantizer, converted, and written by torch's exporter."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    example = (torch.zeros(SHAPE),)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(torch.export.export(network, example).module(), quantizer)
    for sample in samples(16, seed=0):
        prepared(torch.from_numpy(sample[None]))
    program = torch.export.export(convert_pt2e(prepared), example)
    path = tmp_path / "torch.onnx"
    torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False)
    result = check(path, tmp_path)
    # That quantizer leaves what follows the residual sum without scales of its own.
    assert [f.operator for f in result.manifest.float_operators] == ["add", "relu", "max_pool2d", "mean"]
    layers = [layer for layer in result.manifest.layers if layer.operator in ("conv2d", "dense")]
    assert len(layers) == 4
    assert all(layer.accumulator_bound for layer in layers)
