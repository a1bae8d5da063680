"""Prunes a trained ResNet-20, trains it on with the original as teacher, and compiles both.

python benchmarks/prune_cifar.py DATA --output results/ --reduction 0.4 --multiple 16
python benchmarks/prune_cifar.py DATA --output results/ --latency   # of the two libraries, alternating

Needs safetensors. A line of JSON is appended to ``pruning.jsonl`` in the output folder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from cifar import Data, ResNet20, Schedule, accuracy, train
from safetensors.torch import load_file
from train_quantized import CALIBRATION, run

import qcompiler
from qcompiler.compression import Distillation

ROUNDS, RUNS = 15, 400


def latency(bundles: list[Path], image: Any) -> list[float]:
    """Medians in microseconds of one run at one thread, measured in alternating rounds."""
    models = [qcompiler.load(bundle, threads=1) for bundle in bundles]
    times: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for model, found in zip(models, times, strict=True):
            for _ in range(20):
                model.run(image)
            start = time.perf_counter()
            for _ in range(RUNS):
                model.run(image)
            found.append((time.perf_counter() - start) / RUNS * 1e6)
    return [statistics.median(t) for t in times]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder with the images and resnet20_cifar10.safetensors")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--reduction", type=float, default=0.4)
    parser.add_argument("--multiple", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--latency", action="store_true", help="only measure the libraries that are there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = Data.load(arguments.data)
    bundles = [arguments.output / name for name in ("original", f"pruned-{arguments.multiple}")]
    if arguments.latency:
        print(
            json.dumps(
                dict(zip(("original_us", "pruned_us"), latency(bundles, data.test[:1].numpy()), strict=True))
            )
        )
        return

    arguments.output.mkdir(parents=True, exist_ok=True)
    teacher = ResNet20()
    teacher.load_state_dict(load_file(arguments.data / "resnet20_cifar10.safetensors"), strict=False)
    teacher.eval()
    pruned = qcompiler.prune_channels(
        teacher, (data.test[:1],), arguments.reduction, multiple=arguments.multiple
    )
    for layer in pruned.layers:
        print(f"{layer.name:24} {layer.before:3} -> {layer.after:3}  {layer.reason or ''}", flush=True)
    student = pruned.model.train()
    before = accuracy(student.eval(), data.test, data.test_labels)
    distill = Distillation(
        teacher, student, temperature=4.0, soft_weight=0.9, features=("layer1", "layer2", "layer3")
    )
    schedule = Schedule(arguments.epochs, arguments.rate, warm_up=0.2, seed=3)
    train(
        student,
        lambda x, labels: distill(x, labels=labels).total,
        data,
        schedule,
        checkpoint=arguments.output / f"pruned-{arguments.multiple}.checkpoint",
        before_epoch=lambda _: student.train() and None,
    )
    row: dict[str, Any] = {
        "multiple": arguments.multiple,
        "epochs": arguments.epochs,
        "multiplications": pruned.multiplications,
        "reduction": 1 - pruned.multiplications[1] / pruned.multiplications[0],
        "float_original": accuracy(teacher, data.test, data.test_labels),
        "float_pruned_untrained": before,
        "float_pruned": accuracy(student.eval(), data.test, data.test_labels),
    }
    for name, model, bundle in zip(("original", "pruned"), (teacher, student), bundles, strict=True):
        result = qcompiler.compile(
            model, (data.test[:1],), calibration=data.calibration(CALIBRATION), output=bundle
        )
        row[f"int8_{name}"] = 100 * float(
            (run(bundle, data.test).argmax(1) == data.test_labels.numpy()).mean()
        )
        row[f"compiled_macs_{name}"] = sum(layer.macs for layer in result.manifest.layers)
    print(json.dumps(row))
    with (arguments.output / "pruning.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
