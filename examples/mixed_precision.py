"""Mixed precision: a small CNN for handwritten digits keeps its accuracy with as few layers in float as possible.

Run with: pip install 'qcompiler[demo]' && python examples/mixed_precision.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import qcompiler
from qcompiler.config import CompileConfig
from qcompiler.driver.search.result import SearchConfig
from qcompiler.driver.search.search import search


def trained(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(30):
        for chosen in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[chosen]), labels[chosen]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    digits = load_digits()
    images = torch.tensor(digits.images[:, None] / 16.0, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    model = trained(images[:1000], labels[:1000])
    with torch.no_grad():
        model[2].weight[0] *= 40.0  # an outlier, so that there is something to find
        model[4].weight[:, 0] /= 40.0

    with TemporaryDirectory() as name:
        folder = Path(name)
        torch.export.save(torch.export.export(model, (images[:1],)), folder / "model.pt2")
        np.savez(folder / "calibration.npz", x=images[:128].numpy())
        np.savez(folder / "test.npz", x=images[1000:].numpy(), labels=labels[1000:].numpy())
        result = search(
            str(folder / "model.pt2"),
            CompileConfig(),
            SearchConfig(max_drop=0.5, threads=1),
            calibration=folder / "calibration.npz",
            data=folder / "test.npz",
            output=folder / "plan.json",
        )
        for layer in result.layers:
            print(f"{layer.name:>10}  {layer.sqnr_db['int8']:5.1f} dB alone in int8  -> {layer.precision}")
        chosen = result.chosen
        print(f"float top-1 {result.float_top1:.2%}; the plan loses {100 * chosen.drop:.2f} points")
        print(
            f"latency promised {chosen.promised.seconds * 1e6:.1f} us, measured {chosen.seconds * 1e6:.1f} us"
        )

        compiled = qcompiler.compile(
            str(folder / "model.pt2"),
            calibration=str(folder / "calibration.npz"),
            plan=folder / "plan.json",
            output=folder / "bundle",
        )
        print("in float:", ", ".join(r.place for r in compiled.manifest.float_operators) or "nothing")


if __name__ == "__main__":
    main()
