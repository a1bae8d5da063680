"""Accuracy of one model under every calibration method, optimization and effort: a table, and a JSON file.

    python benchmarks/accuracy.py FOLDER [--model NAME.pt2] [--calibration NAME.npz] [--test NAME.npz] [--limit N]
                                  [--output FILE.json] [--only NAME ...]

Each variant is compiled for this machine and its library is run on the test samples; what is measured is what is shipped.
The folder holds the model, an ``.npz`` with calibration samples, and one with test samples and ``labels``. Without labels
there is no top-1, only the signal to quantization noise of the first output. A variant that was measured already, as the
JSON file tells, is not measured again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qcompiler import CompileConfig, runtime
from qcompiler.driver.compile import compile_model
from qcompiler.driver.data import read_samples
from qcompiler.driver.evaluate import Sqnr
from qcompiler.driver.float_model import float_model
from qcompiler.frontend import capture
from qcompiler.runtime.manifest import TensorSpec

VARIANTS: dict[str, dict[str, Any]] = {
    "minmax (--effort fast, the default)": {},
    "moving-average": {"calibration_method": "moving-average"},
    "percentile 99.99": {"calibration_method": "percentile"},
    "mse": {"calibration_method": "mse"},
    "entropy": {"calibration_method": "entropy"},
    "auto": {"calibration_method": "auto"},
    "minmax, equalize": {"equalize": True},
    "minmax, SmoothQuant": {"smooth": True},
    "minmax, fast bias correction": {"bias_correction": "fast"},
    "minmax, empirical bias correction": {"bias_correction": "empirical"},
    "minmax, adaptive rounding": {"adaptive_rounding": True},
    "--effort balanced": {"effort": "balanced"},
    "--effort max": {"effort": "max"},
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet20_cifar10.pt2")
    parser.add_argument("--calibration", default="cifar10_calibration.npz")
    parser.add_argument("--test", default="cifar10_test.npz")
    parser.add_argument("--limit", type=int, help="test samples, at most")
    parser.add_argument("--output", type=Path, help="JSON file that keeps what was measured")
    parser.add_argument("--only", nargs="*", choices=list(VARIANTS), help="measure these variants only")
    options = parser.parse_args(arguments)

    measured: dict[str, Any] = {}
    if options.output is not None and options.output.is_file():
        measured = json.loads(options.output.read_text())
    exact: list[np.ndarray] | None = None
    for name in options.only or VARIANTS:
        if name in measured:
            continue
        if exact is None:
            exact = float_outputs(options)
        measured[name] = measure(VARIANTS[name], exact, options)
        print(row(name, measured[name]), flush=True)
        if options.output is not None:
            options.output.write_text(json.dumps(measured, indent=2))
    print("\n| variant | top-1 | float | same class | SQNR | kept of what was tried | seconds |")
    print("|---|---|---|---|---|---|---|")
    for name in VARIANTS:
        if name in measured:
            print(row(name, measured[name]))


def float_outputs(options: argparse.Namespace) -> list[np.ndarray]:
    """The float model's first output for each test batch."""
    torch.set_num_threads(1)
    program = capture.resolve(str(options.folder / options.model))
    specs = tuple(
        TensorSpec(i.name, tuple(i.shape), str(i.dtype).removeprefix("torch."))
        for i in capture.user_inputs(program)
    )
    samples = read_samples(options.folder / options.test, specs, options.limit)
    model = float_model(program)
    return [model(*inputs)[0] for _, inputs in samples.batches()]


def measure(variant: dict[str, Any], exact: list[np.ndarray], options: argparse.Namespace) -> dict[str, Any]:
    """Compiles a variant and runs it on the test samples."""
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / "bundle"
        start = time.perf_counter()
        result = compile_model(
            options.folder / options.model,
            CompileConfig(embed_reference=False, **variant),
            calibration=options.folder / options.calibration,
            output=bundle,
        )
        seconds = time.perf_counter() - start
        compiled = runtime.load(bundle, 1)
        samples = read_samples(options.folder / options.test, compiled.inputs, options.limit)
        ratio, found, wanted = Sqnr(), [], []
        for (valid, inputs), expected in zip(samples.batches(), exact, strict=True):
            output = compiled.run(*inputs)[0]
            ratio.add(expected[:valid], output[:valid])
            found.append(output[:valid].argmax(1))
            wanted.append(expected[:valid].argmax(1))
    classes, float_classes = np.concatenate(found), np.concatenate(wanted)
    labels = samples.labels
    return {
        "top1": None if labels is None else float(np.mean(classes == labels)),
        "float_top1": None if labels is None else float(np.mean(float_classes == labels)),
        "agreement": float(np.mean(classes == float_classes)),
        "sqnr_db": ratio.decibels,
        "kept": [o.name for o in result.manifest.optimizations if o.kept],
        "undone": [o.name for o in result.manifest.optimizations if not o.kept],
        "samples": len(classes),
        "seconds": seconds,
    }


def row(name: str, entry: dict[str, Any]) -> str:
    """A row of the table."""
    top1, float_top1 = (
        "-" if entry[key] is None else f"{100 * entry[key]:.2f} %" for key in ("top1", "float_top1")
    )
    tried = [*entry["kept"], *(f"~~{undone}~~" for undone in entry["undone"])]
    return (
        f"| {name} | {top1} | {float_top1} | {100 * entry['agreement']:.2f} % | {entry['sqnr_db']:.1f} dB | "
        f"{', '.join(tried) or '-'} | {entry['seconds']:.0f} |"
    )


if __name__ == "__main__":
    main()
