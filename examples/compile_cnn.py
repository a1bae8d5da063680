"""Compiles a small CNN from Python, runs the bundle, and says what became of every layer.

python examples/compile_cnn.py
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

import qcompiler

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 32, 3, padding=1),
    nn.BatchNorm2d(32),
    nn.Hardswish(),
    nn.MaxPool2d(2),
    nn.Conv2d(32, 64, 3, padding=1),
    nn.ReLU(),
    nn.AdaptiveAvgPool2d(1),
    nn.Flatten(),
    nn.Linear(64, 10),
).eval()
example = torch.randn(1, 3, 32, 32)
calibration = [torch.randn(16, 3, 32, 32) for _ in range(8)]

result = qcompiler.compile(model, (example,), calibration=calibration, output="cnn-bundle")
for layer in result.manifest.layers:
    print(f"{layer.name:24} {layer.operator:18} {layer.instruction or layer.reason or ''}")

(logits,) = qcompiler.load(result.bundle).run(example)
with torch.no_grad():
    expected = model(example).numpy()
print("largest difference from float:", float(np.abs(logits - expected).max()))
