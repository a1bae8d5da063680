"""Estimates the inner loops of a network's layers for every ARM target, without a board.

    pip install --no-deps torchvision; apt-get install llvm-19
    python benchmarks/arm_loops.py FOLDER --network resnet50

The network is quantized once and compiled for each target; ``qcompile profile --static`` gives the same numbers for one
bundle. One row for each size of output and number of products an output: multiply-accumulates a cycle as a share of the
target's peak, by LLVM's analyzer with its model of the processor. Where LLVM has no model, the bound of the core's units
stands in brackets.
"""

from __future__ import annotations

import argparse
import sys
from math import prod
from pathlib import Path

import torch
from job import Job

from qcompiler.config import CompileConfig
from qcompiler.driver.compile import compile_model, quantized_program
from qcompiler.driver.peers import PeerOptions
from qcompiler.driver.static_profile import static_profile
from qcompiler.frontend import capture
from qcompiler.runtime import read_manifest
from qcompiler.targets import registry

Row = tuple[str, int, str]
"""Extents of an output, products of an output element, and the instruction."""


def shares(bundle: Path) -> dict[Row, str]:
    """The share of the peak of each kind of layer of ``bundle``, as text."""
    layers = {layer.name: layer for layer in read_manifest(bundle).layers}
    found = {}
    for row in static_profile(bundle, count=False).rows:
        shape = layers[row.name].output_shape
        kind = "depthwise" if row.macs < 32 * prod(shape) else "dense"
        extents = "x".join(str(d) for d in shape[1:])
        text = (
            f"{100 * row.peak_share:.0f} %"
            if row.peak_share is not None
            else f"({100 * row.bound_share:.0f} %)"
        )
        found[extents, row.macs // prod(shape), kind] = text
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--targets", default=",".join(t.name for t in registry.known() if t.family == "arm"))
    arguments = parser.parse_args()
    folder = arguments.folder / arguments.network
    job = Job(arguments.network, 1, folder, (1,), PeerOptions())
    job.write()
    names = arguments.targets.split(",")
    config = CompileConfig(target=names[0], embed_reference=False)
    program = capture.check(torch.export.load(job.archive))
    quantized, _ = quantized_program(
        program, registry.resolve(names[0]), config, str(folder / f"{arguments.network}.npz")
    )
    columns: dict[str, dict[Row, str]] = {}
    for name in names:
        config = CompileConfig(target=name, embed_reference=False)
        result = compile_model(quantized, config, calibration=None, output=folder / name)
        columns[name] = shares(result.bundle)
        print(name, file=sys.stderr)
    kinds = list(dict.fromkeys(kind for column in columns.values() for kind in column))
    print("| output | products | | " + " | ".join(names) + " |")
    print("|---|--:|---|" + "--:|" * len(names))
    for kind in kinds:
        cells = [columns[name].get(kind, "-") for name in names]
        print(f"| {kind[0]} | {kind[1]} | {kind[2]} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
