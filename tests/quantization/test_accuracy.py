"""A trained ResNet-20 keeps its accuracy; skipped where the shared data is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qcompiler.config import CompileConfig, Observer
from qcompiler.quantization import quantize
from qcompiler.targets.base import QuantizationRules

DATA = Path(__file__).parents[2].parent / "shared" / "data"
MODEL, CALIBRATION, TEST = (
    DATA / name for name in ("resnet20_cifar10.pt2", "cifar10_calibration.npz", "cifar10_test.npz")
)
IMAGES = 300


@pytest.mark.slow
@pytest.mark.skipif(not all(p.is_file() for p in (MODEL, CALIBRATION, TEST)), reason=f"no data in {DATA}")
@pytest.mark.parametrize("observer", ["minmax", "percentile", "mse"])
def test_resnet20_loses_at_most_a_point(observer: Observer) -> None:
    program = torch.export.load(MODEL)
    samples = torch.from_numpy(np.load(CALIBRATION)["x"][:64])
    result, floats = quantize(
        program, QuantizationRules(), [(s[None],) for s in samples], CompileConfig(observer=observer)
    )
    assert floats == []
    with np.load(TEST) as test:
        images, labels = torch.from_numpy(test["x"][:IMAGES]), test["labels"][:IMAGES]
    right = []
    with torch.no_grad():
        for run in (program.module(), result.module()):
            classes = torch.cat([run(image[None]).argmax(1) for image in images])
            right.append(int((classes.numpy() == labels).sum()))
    expected, actual = right
    assert expected > 0.75 * IMAGES
    assert actual >= expected - 0.01 * IMAGES
