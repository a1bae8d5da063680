"""The whole way: from a module to a bundle whose outputs are the reference's, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qcompiler
from qcompiler import reference
from qcompiler.config import CompileConfig
from qcompiler.driver import compile as driver
from qcompiler.driver.bundle import REFERENCE_NAME
from qcompiler.errors import CalibrationError, ConfigError, QuantizationError, TargetError
from qcompiler.frontend import capture
from qcompiler.quantization import quantize
from qcompiler.quantization.plan import Plan
from qcompiler.targets import registry


class Network(nn.Module):
    """A residual block, a depthwise convolution, a gate and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.project = nn.Conv2d(16, 16, 1)
        self.gate = nn.Conv2d(16, 16, 1)
        self.classify = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu_(self.norm(self.stem(x)))
        y = self.project(nn.functional.relu6(self.depthwise(x))) + x
        y = y * torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(y, 1)))
        return self.classify(torch.flatten(nn.functional.adaptive_avg_pool2d(y, 1), 1))


def batches(count: int = 4, batch: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, 3, 20, 18, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    torch.manual_seed(0)
    return Network().eval()


@pytest.fixture(scope="module")
def result(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> driver.CompileResult:
    output = tmp_path_factory.mktemp("compiled") / "bundle"
    return qcompiler.compile(network, (batches()[0],), calibration=batches(), output=output)


def test_every_output_bit_is_the_reference_s(result: driver.CompileResult) -> None:
    interpreter = reference.Interpreter(reference.load(result.bundle / REFERENCE_NAME))
    model = qcompiler.load(result.bundle)
    for x in batches(6):
        (found,) = model.run(x)
        (wanted,) = interpreter.run([x.numpy()])
        assert wanted.exact
        assert np.array_equal(found, wanted.array)


def test_the_outputs_are_close_to_the_float_model_s(network: nn.Module, result: driver.CompileResult) -> None:
    """Int8 keeps about 30 dB on this network; a wrong scale or a lost bias costs far more than 10 of them."""
    model = qcompiler.load(result.bundle)
    with torch.no_grad():
        wanted = np.concatenate([network(x).numpy() for x in batches()])
    found = np.concatenate([model.run(x)[0] for x in batches()])
    assert 10 * np.log10((wanted**2).sum() / ((wanted - found) ** 2).sum()) > 20


def test_the_manifest_is_a_certificate(result: driver.CompileResult) -> None:
    layers = {layer.name: layer for layer in result.manifest.layers}
    assert result.manifest.float_operators == ()
    instruction = registry.resolve("native").instruction
    for name in ("stem", "project", "gate", "classify"):
        assert layers[name].instruction == instruction
        assert layers[name].instruction_count > 0
        assert 0 < (layers[name].accumulator_bound or 0) < 2**31
    if instruction == "vpdpbusd":  # rows of its window are the bytes of a dot product
        assert layers["depthwise"].instruction == instruction
        assert layers["depthwise"].reason is None
    else:
        assert layers["depthwise"].instruction is None
        assert "depthwise" in (layers["depthwise"].reason or "")
    assert layers["stem"].macs == 2 * 10 * 9 * 16 * 27
    (spec,) = result.manifest.inputs
    assert (spec.name, spec.shape, spec.dtype) == ("x", (2, 3, 20, 18), "float32")
    assert spec.scale is not None


def test_a_quantized_program_keeps_its_scales(network: nn.Module, tmp_path: Path) -> None:
    program = capture.capture(network, (batches()[0],))
    rules = registry.resolve("native").rules
    quantized, _ = quantize(program, rules, [(x,) for x in batches()], CompileConfig())
    compiled = qcompiler.compile(quantized, output=tmp_path / "bundle")
    assert compiled.manifest.float_operators == ()
    x = batches()[0]
    (found,) = qcompiler.load(compiled.bundle).run(x)
    wanted = quantized.module()(x).detach().numpy()
    # Fake quantization sums in float32: a sum near a rounding border may fall on its other side.
    assert np.abs(found - wanted).max() <= 0.05 * np.abs(wanted).max()


def test_what_is_kept_in_float_is_named_with_its_reason(network: nn.Module, tmp_path: Path) -> None:
    compiled = qcompiler.compile(
        network, (batches()[0],), calibration=batches(), output=tmp_path / "bundle", keep_float=("project",)
    )
    (record,) = [r for r in compiled.manifest.float_operators if r.operator == "conv2d"]
    assert record.place.startswith("project")
    assert "keep_float" in record.reason
    (found,) = qcompiler.load(compiled.bundle).run(batches()[0])
    assert np.isfinite(found).all()


def test_a_plan_is_followed_and_goes_with_float_models_only(network: nn.Module, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    Plan({"project": "fp32", "classify": "fp32"}).save(plan)
    x = batches()[0]
    compiled = qcompiler.compile(network, (x,), calibration=batches(), output=tmp_path / "bundle", plan=plan)
    reasons = {r.place.rstrip("0123456789_"): r.reason for r in compiled.manifest.float_operators}
    assert reasons["project"] == reasons["classify"] == "plan: fp32"
    assert {"stem", "gate"} <= {layer.name for layer in compiled.manifest.layers}
    interpreter = reference.Interpreter(reference.load(compiled.bundle / REFERENCE_NAME))
    (found,), (wanted,) = qcompiler.load(compiled.bundle).run(x), interpreter.run([x.numpy()])
    # The float layers sum in another order than NumPy does: a step of a quantized gate here and there.
    assert np.abs(found - wanted.array).max() <= 0.02 * np.abs(wanted.array).max()

    program = capture.capture(network, (x,))
    quantized, _ = quantize(program, registry.resolve("native").rules, [(x,)], CompileConfig())
    with pytest.raises(ConfigError, match="quantized already"):
        qcompiler.compile(quantized, output=tmp_path / "other", plan=plan)
    assert not (tmp_path / "other").exists()


def test_one_numbered_file_a_pass(network: nn.Module, tmp_path: Path) -> None:
    qcompiler.compile(
        network, (batches()[0],), calibration=batches(), output=tmp_path / "bundle", dump_ir=tmp_path / "ir"
    )
    names = sorted(path.name for path in (tmp_path / "ir").iterdir())
    assert names[0] == "00-Imported.py"
    assert any("RewriteToInteger" in name for name in names)
    assert [name[:2] for name in names] == [f"{k:02d}" for k in range(len(names))]


def test_refusals(network: nn.Module, tmp_path: Path) -> None:
    x = batches()[0]
    with pytest.raises(CalibrationError, match="calibration data is missing"):
        qcompiler.compile(network, (x,), output=tmp_path / "b")
    with pytest.raises(ConfigError, match="example_inputs"):
        qcompiler.compile(network, calibration=batches(), output=tmp_path / "b")
    with pytest.raises(ConfigError, match="unknown option 'observr'"):
        qcompiler.compile(network, (x,), calibration=batches(), output=tmp_path / "b", observr="mse")
    with pytest.raises(TargetError, match="unknown target"):
        qcompiler.compile(network, (x,), calibration=batches(), output=tmp_path / "b", target="avx9")
    with pytest.raises(QuantizationError, match="projekt"):
        qcompiler.compile(
            network, (x,), calibration=batches(), output=tmp_path / "b", keep_float=("projekt",)
        )
    with pytest.raises(CalibrationError, match="not finite"):
        qcompiler.compile(network, (x,), calibration=[x * float("nan")], output=tmp_path / "b")
    assert not (tmp_path / "b").exists()
