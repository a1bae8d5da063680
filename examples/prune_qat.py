"""Pruning, then quantization-aware training with the original as teacher, on handwritten digits.

Run with: pip install 'qcompiler[demo]' && python examples/prune_qat.py
"""

import argparse

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import qcompiler
from qcompiler.compression import Distillation

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--epochs", type=int, default=15, help="in float; a third of them after pruning")
parser.add_argument("--reduction", type=float, default=0.4, help="share of the multiplications to remove")
parser.add_argument("--output", default="pruned-bundle")
arguments = parser.parse_args()

torch.manual_seed(0)
digits = load_digits()
images = torch.tensor(digits.images[:, None] / 16.0, dtype=torch.float32)
labels = torch.tensor(digits.target)


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.second(self.first(x)) + x)


model = nn.Sequential(
    nn.Sequential(nn.Conv2d(1, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU()),
    Block(64), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
)  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(arguments.epochs):
    for chosen in torch.randperm(1297).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
model.eval()

# 16 channels fill a vector register of AVX-512: fewer would not be faster.
pruned = qcompiler.prune_channels(model, (images[:1],), arguments.reduction, multiple=16)
for layer in pruned.layers:
    print(f"{layer.name:16} {layer.before:3} -> {layer.after:3} channels  {layer.reason or ''}")
print("multiplications: {:,} -> {:,}".format(*pruned.multiplications))

qat = qcompiler.prepare_qat(pruned.model.eval(), (images[:1],), calibration=images[:256])
# The pruned features have fewer channels than the teacher's; their maps of attention can be compared.
distill = Distillation(model, qat, features=("0", "1"), feature_loss="attention")
optimizer = torch.optim.Adam(qat.parameters(), lr=1e-3)
epochs = max(2, arguments.epochs // 3)
for epoch in range(epochs):
    if epoch == epochs - 1:
        qat.freeze()
    qat.train()
    for chosen in torch.randperm(1297).split(64):
        optimizer.zero_grad()
        distill(images[chosen], labels=labels[chosen]).total.backward()
        optimizer.step()

result = qcompiler.compile(qat.eval(), (images[:1],), output=arguments.output)
compiled = qcompiler.load(result.bundle)

test, wanted = images[1297:], labels[1297:].numpy()
with torch.no_grad():
    in_float = model(test).numpy().argmax(1)
in_int8 = np.array([compiled.run(image[None])[0].argmax() for image in test])
print(
    f"float: {100 * (in_float == wanted).mean():.1f} %, pruned int8: {100 * (in_int8 == wanted).mean():.1f} %"
)
print(f"multiplications of the library: {sum(layer.macs for layer in result.manifest.layers):,}")
