"""A trained ResNet-20 keeps its accuracy; skipped where the shared data is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.export import ExportedProgram

from qcompiler.config import CalibrationMethod, CompileConfig
from qcompiler.quantization import quantize
from qcompiler.targets.base import QuantizationRules

DATA = Path(__file__).parents[2].parent / "shared" / "data"
MODEL, CALIBRATION, TEST = (
    DATA / name for name in ("resnet20_cifar10.pt2", "cifar10_calibration.npz", "cifar10_test.npz")
)
IMAGES = 200


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(p.is_file() for p in (MODEL, CALIBRATION, TEST)), reason=f"no data in {DATA}"),
]


def _right(program: ExportedProgram) -> int:
    """How many test images the program, of batch size 1, puts into the right class."""
    with np.load(TEST) as test:
        images, labels = torch.from_numpy(test["x"][:IMAGES]), test["labels"][:IMAGES]
    run = program.module()
    with torch.no_grad():
        classes = torch.cat([run(image[None]).argmax(1) for image in images])
    return int((classes.numpy() == labels).sum())


def test_resnet20_loses_at_most_a_point() -> None:
    program = torch.export.load(MODEL)
    expected = _right(program)
    assert expected > 0.75 * IMAGES
    samples = torch.from_numpy(np.load(CALIBRATION)["x"][:64])
    methods: tuple[CalibrationMethod, ...] = ("minmax", "mse", "entropy")
    for method in methods:
        result, floats = quantize(
            program,
            QuantizationRules(),
            [(s[None],) for s in samples],
            CompileConfig(calibration_method=method),
        )
        assert floats == []
        assert _right(result) >= expected - 0.01 * IMAGES, method
