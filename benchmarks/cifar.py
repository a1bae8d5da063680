"""CIFAR-10 for the benchmarks of training: the data, two networks, and a loop that can be interrupted.

The data folder holds ``cifar10_train.npz`` (``x`` uint8 [N, 32, 32, 3], ``labels``) and ``cifar10_test.npz`` (``x``
float32 [N, 3, 32, 32], normalized, ``labels``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
PADDING = 4
"""Pixels by which a training image is shifted, at most."""

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From images and labels to a scalar."""


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 [N, 32, 32, 3] to float32 [N, 3, 32, 32] of about zero mean and unit variance."""
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels.permute(0, 3, 1, 2).float() / 255.0 - mean) / std


@dataclass(frozen=True)
class Data:
    """Training images as bytes, test images as the network takes them.

    Attributes:
        pixels: uint8 [N, 32, 32, 3].
        labels: int64 [N].
        test: float32 [M, 3, 32, 32], normalized.
        test_labels: int64 [M].
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    test: torch.Tensor
    test_labels: torch.Tensor

    @classmethod
    def load(cls, folder: Path) -> Data:
        train, test = np.load(folder / "cifar10_train.npz"), np.load(folder / "cifar10_test.npz")
        return cls(
            torch.from_numpy(train["x"]),
            torch.from_numpy(train["labels"]).long(),
            torch.from_numpy(test["x"]),
            torch.from_numpy(test["labels"]).long(),
        )

    def calibration(self, count: int) -> torch.Tensor:
        """The first training images as the network takes them, float32 [count, 3, 32, 32]."""
        return normalize(self.pixels[:count])

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """One epoch of shifted and mirrored images, in random order; a last batch that is not full is left out."""
        order = torch.randperm(len(self.labels), generator=generator)
        for chosen in order.split(size):
            if len(chosen) == size:
                yield _augment(normalize(self.pixels[chosen]), generator), self.labels[chosen]


def _augment(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    count, _, height, width = x.shape
    padded = F.pad(x, (PADDING,) * 4, mode="reflect")
    down, right = (torch.randint(0, 2 * PADDING + 1, (count, 1), generator=generator) for _ in range(2))
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    image = torch.arange(count)[:, None, None]
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def mobilenet_v2() -> nn.Module:
    """torchvision's MobileNetV2 at width 0.5 for 32 x 32 images: strides 1, 1, 2, 2, 1, 1, 2, 1."""
    from models import _torchvision_models

    torchvision_models, _ = _torchvision_models()
    settings = [
        [1, 16, 1, 1],
        [6, 24, 2, 2],
        [6, 32, 3, 2],
        [6, 64, 4, 1],
        [6, 96, 3, 1],
        [6, 160, 3, 2],
        [6, 320, 1, 1],
    ]
    network = torchvision_models.mobilenet_v2(
        num_classes=10, width_mult=0.5, inverted_residual_setting=settings, dropout=0.0
    )
    network.features[0][0].stride = (1, 1)
    assert isinstance(network, nn.Module)
    return network


class Block(nn.Module):
    """A block of ResNet-20, whose shortcut takes every other pixel and pads channels of zeros."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.added = (outputs - inputs) // 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride == 2:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.added, self.added))
        return F.relu(y + x)


class ResNet20(nn.Module):
    """ResNet-20 (He et al. 2016) with the names of the published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16), Block(16, 16), Block(16, 16))
        self.layer2 = nn.Sequential(Block(16, 32), Block(32, 32), Block(32, 32))
        self.layer3 = nn.Sequential(Block(32, 64), Block(64, 64), Block(64, 64))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def accuracy(model: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 in percent."""
    with torch.no_grad():
        right = sum(
            int((model(part).argmax(1) == wanted).sum())
            for part, wanted in zip(x.split(100), labels.split(100), strict=True)
        )
    return 100.0 * right / len(labels)


@dataclass(frozen=True)
class Schedule:
    """SGD with Nesterov momentum 0.9 under a cosine, after a linear warm-up.

    Attributes:
        epochs: passes over the data.
        rate: the largest learning rate.
        decay: weight decay of what has more than one dimension.
        warm_up: epochs over which the rate grows.
        batch: images a step.
        seed: of the order and the augmentation.
    """

    epochs: int
    rate: float
    decay: float = 5e-4
    warm_up: float = 1.0
    batch: int = 100
    seed: int = 0

    def rate_at(self, epoch: float) -> float:
        """The learning rate after ``epoch`` epochs, which need not be whole."""
        if epoch < self.warm_up:
            return self.rate * (epoch + 0.01) / self.warm_up
        share = (epoch - self.warm_up) / max(self.epochs - self.warm_up, 1e-9)
        return self.rate * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0)))


def train(
    model: nn.Module,
    loss: Loss,
    data: Data,
    schedule: Schedule,
    *,
    checkpoint: Path | None = None,
    before_epoch: Callable[[int], None] | None = None,
) -> None:
    """Train in place; with a checkpoint that is there already, go on from it.

    Args:
        model: the module, in training mode or not; its parameters are trained.
        loss: from images and labels to a scalar; it calls the model.
        data: the training images.
        schedule: how long, and how fast.
        checkpoint: a file that is written after every epoch, or None.
        before_epoch: called with the epoch's number before it starts.
    """
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": schedule.decay}, {"params": plain, "weight_decay": 0.0}],
        lr=schedule.rate,
        momentum=0.9,
        nesterov=True,
    )
    first = 0
    if checkpoint is not None and checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["epoch"]
    steps = len(data.labels) // schedule.batch
    for epoch in range(first, schedule.epochs):
        if before_epoch is not None:
            before_epoch(epoch)
        generator = torch.Generator().manual_seed(1000 * schedule.seed + epoch)
        total, start = 0.0, time.perf_counter()
        for step, (x, labels) in enumerate(data.batches(schedule.batch, generator)):
            for group in optimizer.param_groups:
                group["lr"] = schedule.rate_at(epoch + step / steps)
            value = loss(x.contiguous(), labels)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            total += float(value.detach())
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{schedule.epochs}  loss {total / steps:.4f}  {seconds:.0f} s", flush=True)
        if checkpoint is not None:
            partial = checkpoint.with_suffix(".partial")
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epoch": epoch + 1,
            }
            torch.save(state, partial)
            partial.replace(checkpoint)
