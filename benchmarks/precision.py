"""One model in several precisions on this machine: latency, accuracy and size, as a table.

    python benchmarks/precision.py MODEL.pt2 DATA.npz FOLDER --variants fp32,bf16,fp16 [--measure] [--evaluate]

Bundles go into FOLDER and are compiled when they are not there. ``--measure`` times them in alternating rounds on one
thread; ``--evaluate`` runs them on the samples of DATA (``--limit``) beside PyTorch's float32. Both may be given, or one
at a time, the measurement on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qcompiler import CompileConfig, runtime
from qcompiler.driver.compile import compile_model
from qcompiler.driver.data import read_samples
from qcompiler.driver.evaluate import evaluate

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32"},
    "bf16": {"precision": "bf16"},
    "fp16": {"precision": "fp16"},
    "weights-only": {"precision": "fp32", "weights_only": True},
    "int8": {},
    "int8-smooth": {"smooth": True},
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path, help="samples, and labels for top-1")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--calibration", type=Path, help="for int8")
    parser.add_argument("--variants", default="fp32,bf16,fp16")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--evaluate", action="store_true")
    parser.add_argument("--limit", type=int, help="samples to evaluate, at most")
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bundles = {}
    for name in arguments.variants.split(","):
        bundles[name] = arguments.folder / f"{arguments.model.stem}-{name}"
        if not bundles[name].exists():
            config = CompileConfig(embed_reference=False, **VARIANTS[name])
            calibration = arguments.calibration if config.precision == "int8" else None
            compile_model(arguments.model, config, calibration=calibration, output=bundles[name])
            print(f"compiled {bundles[name]}", flush=True)
    times = latencies(bundles, arguments) if arguments.measure else {}
    print("| precision | ms | top-1 | same class | SQNR | size |\n|---|---|---|---|---|---|")
    for name, bundle in bundles.items():
        cells = [f"{1e3 * times[name]:.2f}" if times else "-", "-", "-", "-"]
        if arguments.evaluate:
            found = evaluate(
                bundle, arguments.data, model=str(arguments.model), threads=1, limit=arguments.limit
            )
            decibels = min(found.sqnr_db.values())
            shares = [f"{100 * s:.2f} %" if s is not None else "-" for s in (found.top1, found.agreement)]
            cells[1:] = [*shares, f"{decibels:.1f} dB"]
        size = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file()) / 1e6
        print(f"| {name} | {' | '.join(cells)} | {size:.1f} MB |", flush=True)


def latencies(bundles: dict[str, Path], arguments: argparse.Namespace) -> dict[str, float]:
    """Median seconds of a run, one thread, the bundles in turn."""
    models = {name: runtime.load(bundle, 1) for name, bundle in bundles.items()}
    first = next(iter(models.values()))
    _, inputs = next(iter(read_samples(arguments.data, first.inputs, 1).batches()))
    inputs = [np.asarray(x) for x in inputs]
    taken: dict[str, list[float]] = {name: [] for name in models}
    # About a tenth of a second a measurement.
    number = max(1, round(0.1 / min(first.time(*inputs, number=3, repeat=3))))
    for _ in range(arguments.rounds):
        for name, model in models.items():
            taken[name] += model.time(*inputs, number=number, repeat=1)
    return {name: statistics.median(values) for name, values in taken.items()}


if __name__ == "__main__":
    main()
