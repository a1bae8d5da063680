"""Float builds, whole or by layer: what is computed in which precision, and how near it comes to the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.config import Precision
from qcompiler.driver.compile import CompileResult
from qcompiler.errors import ConfigError, QuantizationError
from qcompiler.targets import registry


class Network(nn.Module):
    """Batch norms, a residual block, a depthwise convolution, pooling and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.project = nn.Conv2d(32, 32, 3, padding=1)
        self.after = nn.BatchNorm2d(32)
        self.classify = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.norm(self.stem(x))), 2)
        y = torch.relu(self.after(self.project(nn.functional.silu(self.depthwise(x)))) + x)
        return self.classify(torch.flatten(nn.functional.adaptive_avg_pool2d(y, 1), 1))


def images(count: int = 1) -> torch.Tensor:
    return torch.randn(count, 3, 24, 20, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    model = Network().train()
    with torch.no_grad():
        model(images(16))
    return model.eval()


def sqnr(model: nn.Module, result: CompileResult) -> float:
    """Decibels of signal over noise against the float64 model."""
    x = images()
    with torch.no_grad():
        wanted = model.double()(x.double()).numpy()
    model.float()
    (found,) = qcompiler.load(result.bundle).run(x)
    assert found.dtype == np.float32
    return float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))


FLOOR: Mapping[Precision, float] = {"fp32": 110.0, "fp16": 55.0, "bf16": 38.0}
"""Decibels that a build keeps at least: a rounding to p bits leaves 6.02 p + 4.8 of them (149, 71 and 53), and each of
the network's five layers rounds its weights, and in bf16 its inputs; the rest is slack for unlucky sums."""


@pytest.mark.parametrize("target", ["native", "x86-avx2"])
@pytest.mark.parametrize("precision", FLOOR)
def test_a_build_is_as_exact_as_its_precision(
    network: nn.Module, tmp_path: Path, precision: Precision, target: str
) -> None:
    result = qcompiler.compile(
        network, (images(),), output=tmp_path / "bundle", precision=precision, target=target
    )
    found = sqnr(network, result)
    assert FLOOR[precision] < found
    if precision == "fp16":
        assert found < FLOOR["fp32"]  # it does round
    layers = {layer.name: layer for layer in result.manifest.layers}
    assert all(layer.instruction_count for layer in result.manifest.layers if layer.instruction)
    assert {layer.operator for layer in layers.values()} == {"float_conv2d", "float_dense"}
    conv = [r for r in result.manifest.float_operators if r.operator == "conv2d"]
    assert len(conv) == 3
    assert {r.reason for r in conv} == {f"precision {precision}"}


class Encoder(nn.Module):
    """A small transformer: attention, layer norms, GELU, softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(24, 32)
        self.layer = nn.TransformerEncoderLayer(32, 4, 64, activation="gelu", batch_first=True)
        self.classify = nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.classify(self.layer(self.embed(x)).mean(1)), -1)


@pytest.mark.parametrize(
    ("options", "floor"),
    [({"precision": "fp32"}, 100.0), ({"precision": "bf16"}, 35.0), ({"precision": "fp32", "weights_only": True}, 30.0)],
    ids=["fp32", "bf16", "weights only"],
)  # fmt: skip
def test_a_small_transformer(tmp_path: Path, options: dict[str, object], floor: float) -> None:
    """Int8 weights are rounded to 127 levels a channel: 40 to 45 dB a layer for normal weights, less for several."""
    torch.manual_seed(0)
    model = Encoder().eval()
    x = torch.randn(2, 12, 24, generator=torch.Generator().manual_seed(1))
    result = qcompiler.compile(model, (x,), output=tmp_path / "bundle", **options)
    with torch.no_grad():
        wanted = model(x).double().numpy()
    (found,) = qcompiler.load(result.bundle).run(x)
    noise = float(10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()))
    assert noise > floor
    linear = [layer for layer in result.manifest.layers if layer.operator == "float_dense"]
    assert len(linear) == 6  # embedding, attention in and out, two of the feed-forward part, classifier
    formats = {"fp32": "float32 x float32 -> float32", "bf16": "bfloat16 x bfloat16 -> float32"}
    expected = (
        "float32 x int8 -> float32" if "weights_only" in options else formats[str(options["precision"])]
    )
    if expected.startswith("bfloat16") and "avx512_bf16" not in registry.resolve("native").required_features:
        expected = "float32 x bfloat16 -> float32"
    assert {layer.arithmetic for layer in linear} == {expected}
    if "weights_only" in options:
        assert noise < 80  # they are rounded


def test_layers_have_their_own_precision(network: nn.Module, tmp_path: Path) -> None:
    result = qcompiler.compile(
        network, (images(),), calibration=[images()], output=tmp_path / "bundle", target="x86-znver4",
        layer_precision={"project": "bf16", "classify": "fp32", "conv2d": "int8"},
    )  # fmt: skip
    instructions = {
        layer.instruction
        for layer in result.manifest.layers
        if layer.operator in ("float_conv2d", "float_dense")
    }
    assert instructions == {"vdpbf16ps", "vfmadd231ps"}
    assert sum(layer.operator == "conv2d" for layer in result.manifest.layers) == 2
    names = {layer.name for layer in result.manifest.layers}
    assert {"stem", "depthwise", "project", "classify"} <= names
    reasons = {r.operator: r.reason for r in result.manifest.float_operators}
    assert reasons["conv2d"] == "precision bf16"


def test_weights_that_are_widened_for_nothing_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = nn.Linear(32, 32).eval()
    for rows, told in ((64, True), (1, False)):
        caplog.clear()
        example = (torch.zeros(rows, 32),)
        qcompiler.compile(model, example, precision="fp16", target="x86-avx2", output=tmp_path / "bundle")
        assert ("widened to float32 at each use" in caplog.text) is told


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp8"}, ConfigError, "precision is 'fp8'"),
        ({"layer_precision": {"stem": "int4"}}, ConfigError, "stem is 'int4'"),
        ({"precision": "fp32", "layer_precision": {"stum": "bf16"}}, QuantizationError, "called 'stum'; near: stem"),
        ({"precision": "bf16", "target": "arm-dotprod"}, ConfigError, "bf16: target arm-dotprod has no kernels for it"),
    ],
)  # fmt: skip
def test_refusals(
    network: nn.Module, tmp_path: Path, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        qcompiler.compile(network, (images(),), output=tmp_path / "bundle", **options)
    assert not (tmp_path / "bundle").exists()
