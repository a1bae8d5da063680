"""Trains the float MobileNetV2 (width 0.5) for CIFAR-10 from which the benchmarks of quantization start.

python benchmarks/train_cifar.py DATA --output mobilenet.pt --epochs 60
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from cifar import Data, Schedule, accuracy, mobilenet_v2, train
from torch.nn import functional as F


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="the folder with cifar10_train.npz and cifar10_test.npz")
    parser.add_argument("--output", type=Path, required=True, help="file for the weights")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--rate", type=float, default=0.1)
    parser.add_argument("--smoothing", type=float, default=0.1, help="of the labels")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    data = Data.load(arguments.data)
    model = mobilenet_v2().train()

    def loss(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x), labels, label_smoothing=arguments.smoothing)

    def report(epoch: int) -> None:
        if epoch % 10 == 0:
            print(f"test {accuracy(model.eval(), data.test, data.test_labels):.2f} %", flush=True)
        model.train()

    schedule = Schedule(epochs=arguments.epochs, rate=arguments.rate)
    checkpoint = arguments.output.with_suffix(".checkpoint")
    train(model, loss, data, schedule, checkpoint=checkpoint, before_epoch=report)
    model.eval()
    print(f"test {accuracy(model, data.test, data.test_labels):.2f} %")
    torch.save(model.state_dict(), arguments.output)


if __name__ == "__main__":
    main()
