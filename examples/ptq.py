"""Post-training quantization: a small CNN for handwritten digits, calibrated with 256 of its training images.

Run with: pip install 'qcompiler[demo]' && python examples/ptq.py
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import qcompiler

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=15)
parser.add_argument("--output", default="ptq-bundle")
arguments = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images[:, None] / 16.0, dtype=torch.float32)
labels = torch.tensor(digits.target)

model = nn.Sequential(
    nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
    nn.Conv2d(32, 64, 3, padding=1, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(arguments.epochs):
    for chosen in torch.randperm(1297).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
model.eval()

example = (images[:1],)
result = qcompiler.compile(model, example, calibration=images[:256], output=arguments.output)
compiled = qcompiler.load(result.bundle)

test, wanted = images[1297:], labels[1297:].numpy()
with torch.no_grad():
    in_float = model(test).numpy().argmax(1)
in_int8 = np.array([compiled.run(image[None])[0].argmax() for image in test])
print(f"float: {100 * (in_float == wanted).mean():.1f} %, int8: {100 * (in_int8 == wanted).mean():.1f} %")
print("left in float:", [record.operator for record in result.manifest.float_operators] or "nothing")
