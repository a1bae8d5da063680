"""Estimates the inner loops of ResNet-50's convolutions for every ARM target, without a board.

    apt-get install llvm-19
    python benchmarks/arm_loops.py

Each kernel is compiled as the compiler does without tuning. A cell is what LLVM's analyzer says of the inner loop with its
model of the processor: multiply-accumulates a cycle as a share of the target's peak. Where LLVM has no model, the bound of
the core's units stands in brackets. ``qcompile profile --static`` gives the same for the layers of a bundle.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import tvm

from qcompiler.driver.link import link_shared
from qcompiler.driver.machine_code.estimate import estimate
from qcompiler.driver.machine_code.library import Function, kernel_functions
from qcompiler.driver.machine_code.loops import inner_loop
from qcompiler.targets import registry
from qcompiler.targets.arm import decisions
from qcompiler.targets.arm.finish import Epilogue
from qcompiler.targets.arm.requantization import Requantization
from qcompiler.targets.arm.sketches import Problem
from qcompiler.targets.base import Target
from qcompiler.targets.cpu.shapes import ConvShape

_LAYERS = (
    (224, 3, 64, 7, 2),
    (56, 64, 64, 1, 1), (56, 64, 64, 3, 1), (56, 64, 256, 1, 1), (56, 256, 64, 1, 1),
    (56, 256, 128, 1, 1), (56, 128, 128, 3, 2), (28, 128, 512, 1, 1), (56, 256, 512, 1, 2), (28, 512, 128, 1, 1),
    (28, 128, 128, 3, 1),
    (28, 512, 256, 1, 1), (28, 256, 256, 3, 2), (14, 256, 1024, 1, 1), (28, 512, 1024, 1, 2), (14, 1024, 256, 1, 1),
    (14, 256, 256, 3, 1),
    (14, 1024, 512, 1, 1), (14, 512, 512, 3, 2), (7, 512, 2048, 1, 1), (14, 1024, 2048, 1, 2), (7, 2048, 512, 1, 1),
    (7, 512, 512, 3, 1),
)  # fmt: skip
"""ResNet-50's convolutions: height and width, input channels, output channels, kernel, stride."""


def shapes() -> dict[str, tuple[ConvShape, bool]]:
    """The shapes on padded inputs, and whether they are a matrix product, by a short description."""
    found = {}
    for size, channels, out, kernel, stride in _LAYERS:
        padded = size + 2 * (kernel // 2)
        text = f"{channels}, {size}x{size} → {out}, {kernel}x{kernel}" + (f", stride {stride}" * (stride > 1))
        shape = ConvShape(
            1, padded, padded, channels, out, (kernel, kernel), (stride, stride), (0, 0, 0, 0), (1, 1), 1
        )
        found[text] = shape, False
    linear = ConvShape(1, 1, 1, 2048, 1000, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    return {**found, "2048 → 1000, linear": (linear, True)}


def shares(target: Target) -> list[str]:
    """The share of the peak of each of :func:`shapes`, as text."""
    functions = {}
    for number, (shape, matrix) in enumerate(shapes().values()):
        decision = decisions.dense_decision(target, shape)
        cycles = decisions.parallel_cycles(target, shape)
        last = Epilogue(Requantization(3, 0, 255), None)
        problem = Problem(
            shape,
            last,
            target.instruction,
            decision.vectors,
            matrix,
            True,
            decisions.loads_halves(target),
            cycles,
        )
        name = f"layer{number}"
        functions[name] = problem.dense(decision).function(cycles).with_attr("global_symbol", name)
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        built = tvm.tirx.build(tvm.IRModule(functions), target=registry.to_tvm(target, 1))
        built.export_library(str(library), fcompile=link_shared)
        kernels = kernel_functions(library)
        return [_share(library, target, kernels[name]) for name in functions]


def _share(library: Path, target: Target, functions: Sequence[Function]) -> str:
    loop = inner_loop(functions)
    assert loop is not None
    found = estimate(library, loop, target)
    if found.simulated is None:
        return f"({100 * loop.macs / found.bound / target.macs_per_cycle:.0f} %)"
    return f"{100 * loop.macs / found.simulated / target.macs_per_cycle:.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--targets", default=",".join(t.name for t in registry.known() if t.family == "arm"))
    names = parser.parse_args().targets.split(",")
    columns = []
    for name in names:
        columns.append(shares(registry.resolve(name)))
        print(name, *columns[-1], file=sys.stderr)
    print("| layer | " + " | ".join(names) + " |")
    print("|---|" + "--:|" * len(names))
    for text, *cells in zip(shapes(), *columns, strict=True):
        print(f"| {text} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
