"""Quantization-aware training with the float model as teacher, on handwritten digits.

Run with: pip install 'qcompiler[demo]' && python examples/qat_distillation.py
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import qcompiler
from qcompiler.compression import Distillation

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=15, help="in float; a third of them quantized")
parser.add_argument("--output", default="qat-bundle")
arguments = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images[:, None] / 16.0, dtype=torch.float32)
labels = torch.tensor(digits.target)

model = nn.Sequential(
    nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU6()),
    nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False), nn.BatchNorm2d(32), nn.ReLU6()),
    nn.Sequential(nn.Conv2d(32, 64, 1, stride=2, bias=False), nn.BatchNorm2d(64), nn.ReLU6()),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(arguments.epochs):
    for chosen in torch.randperm(1297).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
model.eval()

qat = qcompiler.prepare_qat(model, (images[:1],), calibration=images[:256], learned_scales=True)
distill = Distillation(model, qat, temperature=4.0, soft_weight=0.9, features=("0", "2"))
optimizer = torch.optim.Adam(qat.parameters(), lr=1e-3)
epochs = max(2, arguments.epochs // 3)
for epoch in range(epochs):
    if epoch == epochs - 1:
        qat.freeze()  # the last epoch trains exactly what will run
    qat.train()
    for chosen in torch.randperm(1297).split(64):
        optimizer.zero_grad()
        loss = distill(images[chosen], labels=labels[chosen])
        loss.total.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: soft {loss.soft.item():.4f}, features {loss.features.item():.4f}")
qat.eval()

result = qcompiler.compile(qat, (images[:1],), output=arguments.output)
compiled = qcompiler.load(result.bundle)

test, wanted = images[1297:], labels[1297:].numpy()
with torch.no_grad():
    in_float, trained = model(test).numpy().argmax(1), qat(test).numpy()
in_int8 = np.concatenate([compiled.run(image[None])[0] for image in test])
print(
    f"float: {100 * (in_float == wanted).mean():.1f} %, int8: {100 * (in_int8.argmax(1) == wanted).mean():.1f} %"
)
print(
    f"trained and compiled differ by {np.abs(trained - in_int8).max() / np.ptp(trained) * 255:.2f} steps of 255 at most"
)
