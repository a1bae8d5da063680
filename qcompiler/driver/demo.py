"""The whole way in a minute: trains a small network on handwritten digits, compiles it, and compares."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from qcompiler.config import CompileConfig
from qcompiler.driver.bench import BenchResult, bench
from qcompiler.driver.compile import compile_model
from qcompiler.driver.data import Array
from qcompiler.driver.evaluate import Evaluation, evaluate
from qcompiler.driver.verify import Verification, verify
from qcompiler.errors import ConfigError
from qcompiler.report import progress as progress_bar

EPOCHS = 20
BATCH = 64
TRAINING = 1297
"""Digits of scikit-learn's 1797 to learn from; the other 500 are the test."""
CALIBRATION = 256


@dataclass(frozen=True)
class DemoResult:
    """What :func:`demo` found.

    Attributes:
        bundle: the compiled model.
        model: the trained float model, as a ``.pt2`` archive.
        calibration: ``.npz`` of the digits that it was calibrated with.
        data: ``.npz`` of the digits that it was tested with.
        bundle_bytes: size of the bundle.
        library_bytes: size of the bundle's model library alone.
        evaluation: accuracy, int8 and float.
        verification: the comparison with the reference interpreter.
        timings: latency, beside PyTorch's.
    """

    bundle: Path
    model: Path
    calibration: Path
    data: Path
    bundle_bytes: int
    library_bytes: int
    evaluation: Evaluation
    verification: Verification
    timings: BenchResult


class Residual(nn.Module):
    """Two convolutions around which the input takes a short cut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + x)


class DigitNet(nn.Sequential):
    """Takes [N, 1, 8, 8] images with pixels in [0, 1]; gives [N, 10] logits."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            Residual(32),
            nn.Conv2d(32, 64, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            Residual(64),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


def demo(output: Path, *, target: str = "native", progress: bool = False) -> DemoResult:
    """Trains, compiles, verifies and measures a small network.

    Args:
        output: the bundle's folder; model and data are written beside it, with its name in theirs.
        target: the chip to compile for, which must be this machine's or one that it can stand in for.
        progress: show progress bars.

    Raises:
        ConfigError: scikit-learn, which brings the digits, is not installed.
        QCompilerError: a step failed.
    """
    images, labels = _digits()
    output.parent.mkdir(parents=True, exist_ok=True)
    model, calibration, data = (
        output.with_name(f"{output.name}-{rest}") for rest in ("model.pt2", "calibration.npz", "test.npz")
    )
    np.savez(calibration, x=images[:CALIBRATION])
    np.savez(data, x=images[TRAINING:], labels=labels[TRAINING:])
    with progress_bar("train", EPOCHS, progress) as advance:
        network = train(images[:TRAINING], labels[:TRAINING], advance)
    with torch.no_grad():
        torch.export.save(torch.export.export(network, (torch.from_numpy(images[:1]),)), model)
    config = CompileConfig(target=target, progress=progress)
    compile_model(model, config, calibration=calibration, output=output)
    return DemoResult(
        output,
        model,
        calibration,
        data,
        sum(file.stat().st_size for file in output.rglob("*") if file.is_file()),
        (output / "model.so").stat().st_size,
        evaluate(output, data, model=str(model), progress=progress),
        verify(output, data, progress=progress),
        bench(
            output,
            threads=(1,),
            against=("torch",),
            model=str(model),
            calibration=calibration,
            progress=progress,
        ),
    )


def train(images: Array, labels: Array, advance: Callable[[int], None]) -> nn.Module:
    """A :class:`DigitNet` in evaluation mode, trained on ``images``; ``advance(1)`` follows each epoch."""
    torch.manual_seed(0)
    network = DigitNet()
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    steps = EPOCHS * -(-len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=steps)
    for _ in range(EPOCHS):
        for index in torch.split(torch.randperm(len(x)), BATCH):
            optimizer.zero_grad()
            loss: Any = nn.functional.cross_entropy(network(x[index]), y[index])
            loss.backward()
            optimizer.step()
            schedule.step()
        advance(1)
    return network.eval()


def _digits() -> tuple[Array, Array]:
    """Images, float32 [1797, 1, 8, 8] in [0, 1], and labels, int64 [1797], in a shuffled order."""
    if importlib.util.find_spec("sklearn") is None:
        raise ConfigError("the demo needs scikit-learn for its images: pip install 'qcompiler[demo]'")
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The file is in the order of its writers; shuffled, all of them are in both parts.
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = (digits.images[order] / 16.0).astype(np.float32)[:, np.newaxis]
    return images, digits.target[order].astype(np.int64)
