"""Compiles networks, verifies them bit for bit, and measures them beside ONNX Runtime and OpenVINO.

    pip install --no-deps torchvision; pip install -e '.[peers]'
    python benchmarks/compare.py --output results.json resnet18 resnet50 mobilenet_v2

Every engine quantizes the same network with the same calibration data to int8 and runs in a process of its own; rounds
of all engines alternate. ``--no-bench`` stops after verification. Run it on an idle machine: the threads of a run share
the work evenly, so one busy core halves everybody's speed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import models

from qcompiler.config import CompileConfig
from qcompiler.driver.bench import bench
from qcompiler.driver.compile import compile_model
from qcompiler.driver.verify import verify


def compare(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """One network's row."""
    archive, data = models.write(name, folder)
    start = time.perf_counter()
    result = compile_model(
        str(archive),
        CompileConfig(target=arguments.target),
        calibration=data,
        output=folder / f"{name}-bundle",
    )
    seconds = time.perf_counter() - start
    checked = verify(result.bundle, data, limit=arguments.samples)
    row: dict[str, object] = {
        "model": name,
        "compile_seconds": round(seconds, 1),
        "verified": checked.fault is None,
        "elements": sum(o.elements for o in checked.outputs),
        "differing": sum(o.differing for o in checked.outputs),
        "exact": all(o.exact for o in checked.outputs),
        "float_operators": [asdict(r) for r in result.manifest.float_operators],
        "gmac": round(sum(layer.macs for layer in result.manifest.layers) / 1e9, 3),
        "library_bytes": (result.bundle / "model.so").stat().st_size,
    }
    print(
        f"{name}: compiled in {seconds:.1f} s, {row['elements']} outputs compared, {row['differing']} differ, "
        f"float operators: {len(result.manifest.float_operators)}",
        flush=True,
    )
    if arguments.bench:
        measured = bench(
            result.bundle,
            threads=(1, 2),
            against=("onnxruntime", "openvino"),
            model=str(archive),
            calibration=data,
            rounds=arguments.rounds,
        )
        row["load"] = measured.load
        row["timings"] = [asdict(t) for t in measured.timings]
        for t in measured.timings:
            shown = (
                f"{t.median * 1e3:8.3f} ms, {t.ratio:.2f} times ours" if t.median else f"absent: {t.absent}"
            )
            print(f"  {t.threads} threads {t.engine:14} {t.dtype:8} {shown}", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", default=list(models.NAMES), help="networks; all of them if none is given"
    )
    parser.add_argument("--target", default="native")
    parser.add_argument("--samples", type=int, default=4, help="samples to verify")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each engine")
    parser.add_argument("--bench", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, help="JSON file of the rows")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [compare(name, Path(folder), arguments) for name in arguments.names or models.NAMES]
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
