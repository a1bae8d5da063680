"""``analyze``: the same quantization as ``compile``, a table, JSON, and a page that needs no other file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qcompiler.config import CompileConfig
from qcompiler.driver.analyze import analyze, write_page
from qcompiler.driver.quantized import batches_of
from qcompiler.errors import CalibrationError, QuantizationError
from qcompiler.quantization import quantize
from qcompiler.targets.base import QuantizationRules


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model of two layers, and calibration data."""
    folder = tmp_path_factory.mktemp("analyze")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).eval()
    torch.export.save(torch.export.export(module, (torch.randn(1, 3, 8, 8),)), folder / "model.pt2")
    np.savez(folder / "data.npz", x=np.random.default_rng(0).normal(size=(8, 3, 8, 8)).astype(np.float32))
    return folder / "model.pt2", folder / "data.npz"


def test_layers_and_page(saved: tuple[Path, Path], tmp_path: Path) -> None:
    model, data = saved
    found = analyze(model, CompileConfig(target="x86-avx2", effort="balanced"), calibration=data, limit=4)
    assert found.target == "x86-avx2"
    assert found.errors.samples == 4
    assert [layer.name for layer in found.errors.layers] == ["input input", "0", "3"]
    assert [effect.name for effect in found.optimizations] == [
        "calibration_method auto",
        "bias_correction empirical",
    ]
    page = write_page(found, "A <model>", tmp_path / "new" / "page.html").read_text()
    assert page.count("<svg") == 3
    assert "A &lt;model&gt;" in page
    assert 'href="http' not in page.replace('xlink:href="#', "")
    assert "<script" not in page


def test_a_quantized_model_and_missing_data_are_refused(saved: tuple[Path, Path]) -> None:
    model, data = saved
    program = torch.export.load(model)
    quantized = quantize(program, QuantizationRules(), batches_of(program, data), CompileConfig())[0]
    with pytest.raises(QuantizationError, match="quantized already"):
        analyze(quantized, CompileConfig(), calibration=data)
    with pytest.raises(CalibrationError, match="calibration data is missing"):
        analyze(model, CompileConfig(), calibration=None)
