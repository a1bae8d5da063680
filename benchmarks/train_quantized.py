"""Accuracy of one network in float, quantized after training, trained quantized, and that with distillation.

python benchmarks/train_quantized.py DATA --weights mobilenet.pt --output results/ --method ptq --method qat

Every accuracy is that of the compiled library on all test images. A line of JSON for each method is appended to
``accuracy.jsonl`` in the output folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cifar import Data, Schedule, accuracy, mobilenet_v2, train
from torch import nn
from torch.nn import functional as F

import qcompiler
from qcompiler.compression import Distillation

CALIBRATION = 256
SMOOTHING = 0.1
FEATURES = ("features.3", "features.6", "features.13", "features.17")
"""Results of MobileNetV2's blocks before each change of resolution, and of the last."""


def run(bundle: Path, x: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Outputs of a compiled library of batch 1."""
    model = qcompiler.load(bundle, threads=1)
    return np.concatenate([model.run(image[None].numpy())[0] for image in x])


def trained(
    model: nn.Module, data: Data, arguments: argparse.Namespace, method: str, folder: Path
) -> nn.Module:
    """A quantized module that was trained by ``qat``, ``distill`` or ``learned`` (distillation and learned scales)."""
    calibration = data.calibration(CALIBRATION)
    qat = qcompiler.prepare_qat(
        model,
        (calibration[:1],),
        arguments.target,
        calibration=calibration,
        learned_scales=method == "learned",
    )
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    if method == "qat":

        def loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return F.cross_entropy(qat(x), labels, label_smoothing=SMOOTHING)
    else:
        distill = Distillation(model, qat, temperature=2.0, soft_weight=0.9, features=FEATURES)

        def loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return distill(x, labels=labels).total

    def before(epoch: int) -> None:
        if epoch >= arguments.epochs * 2 // 3:
            qat.freeze()
        qat.train()

    schedule = Schedule(arguments.epochs, arguments.rate, decay=1e-4, warm_up=0.2, seed=7)
    train(qat, loss, data, schedule, checkpoint=folder / f"{method}.checkpoint", before_epoch=before)
    return qat.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder with cifar10_train.npz and cifar10_test.npz")
    parser.add_argument("--weights", type=Path, required=True, help="what train_cifar.py wrote")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument(
        "--method", action="append", choices=("ptq", "qat", "distill", "learned"), required=True
    )
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE for compile, with ptq")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--target", default="native")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)

    data = Data.load(arguments.data)
    model = mobilenet_v2()
    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    model.eval()
    example = (data.test[:1],)
    rows: list[dict[str, Any]] = [
        {"method": "float", "top1": accuracy(model, data.test, data.test_labels), "test": len(data.test)}
    ]
    for method in arguments.method:
        start, bundle = time.perf_counter(), arguments.output / method
        row: dict[str, Any] = {"method": method, "options": arguments.option}
        if method == "ptq":
            options = dict(option.split("=", 1) for option in arguments.option)
            qcompiler.compile(
                model, example, calibration=data.calibration(CALIBRATION), output=bundle,
                target=arguments.target, **options,
            )  # fmt: skip
            found = run(bundle, data.test)
        else:
            qat = trained(model, data, arguments, method, arguments.output)
            qcompiler.compile(qat, example, output=bundle, target=arguments.target)
            found = run(bundle, data.test)
            with torch.no_grad():
                simulated = np.concatenate([qat(x).numpy() for x in data.test.split(100)])
            exact = qcompiler.simulate(qat, (data.test[:1],), target=arguments.target)(data.test).numpy()
            difference, step = np.abs(found - simulated), np.ptp(simulated) / 255
            row |= {
                "epochs": arguments.epochs,
                "rate": arguments.rate,
                "simulate_differs": int((exact != found).sum()),
                "same_top1_percent": 100 * float((found.argmax(1) == simulated.argmax(1)).mean()),
                "differ_by_0.1_step_percent": 100 * float((difference > 0.1 * step).mean()),
                "largest_difference_steps": float(difference.max() / step),
            }
        row["top1"] = 100 * float((found.argmax(1) == data.test_labels.numpy()).mean())
        row["seconds"] = round(time.perf_counter() - start)
        rows.append(row)
    with (arguments.output / "accuracy.jsonl").open("a") as file:
        for row in rows:
            print(json.dumps(row))
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
