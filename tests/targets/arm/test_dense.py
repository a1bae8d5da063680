"""The inner loops of dense kernels keep their accumulators in registers."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import tvm

from qcompiler.driver.link import link_shared
from qcompiler.driver.machine_code.library import kernel_functions
from qcompiler.driver.machine_code.loops import inner_loop
from qcompiler.targets import registry
from qcompiler.targets.arm.decisions import dense_decision, loads_halves
from qcompiler.targets.arm.dense import Dense
from qcompiler.targets.arm.finish import Epilogue
from qcompiler.targets.arm.requantization import Requantization
from qcompiler.targets.base import Target
from qcompiler.targets.cpu.shapes import ConvShape
from qcompiler.targets.workload import mark_scheduled

SHAPES = {
    "of_an_image": (230, 3, 64, 7, 2),
    "three_by_three": (58, 64, 64, 3, 1),
    "pointwise": (28, 512, 128, 1, 1),
    "small_and_strided": (14, 1024, 2048, 1, 2),
    "odd_pixels": (7, 512, 2048, 1, 1),
}
"""Height and width with padding, input channels, output channels, kernel and stride."""

PRODUCTS = {"arm-neon": 0.4, "arm-dotprod": 0.7, "arm-i8mm": 0.5, "arm-cortex-a55": 0.7}
"""Least share of products among the instructions of a loop: a spilled accumulator adds two that are none."""


def kernels(target: Target) -> tvm.IRModule:
    """Kernels of ``SHAPES`` with the tiles of no tuning, for several threads."""
    functions = {}
    for kernel, (size, c, o, window, stride) in SHAPES.items():
        shape = ConvShape(1, size, size, c, o, (window, window), (stride, stride), (0, 0, 0, 0), (1, 1), 1)
        decision = dense_decision(target, shape)
        epilogue = Epilogue(Requantization(3, 0, 255), None)
        tiled = Dense(
            shape, epilogue, target.instruction, decision.vectors, decision,
            matrix=False, paired=True, halves=loads_halves(target),
        )  # fmt: skip
        made = tiled.function(10**6)
        functions[kernel] = mark_scheduled(made).with_attr("global_symbol", kernel)
    return tvm.IRModule(functions)


@pytest.mark.parametrize("name", PRODUCTS)
def test_nothing_is_spilled(name: str, tmp_path: Path) -> None:
    target = registry.resolve(name)
    library = tmp_path / "kernels.so"
    compiled = tvm.compile(kernels(target), target=registry.to_tvm(target, 1))
    compiled.export_library(str(library), fcompile=link_shared)
    for kernel, members in kernel_functions(library).items():
        loop = inner_loop(members)
        assert loop is not None
        multiply = sum(i.mnemonic in (target.instruction, "smlal") for i in loop.instructions)
        assert not any(i.kind == "store" for i in loop.instructions), kernel
        assert multiply / len(loop.instructions) >= PRODUCTS[name], kernel


@pytest.mark.parametrize("name", ["arm-dotprod", "arm-cortex-a55"])
def test_tiles_are_on_the_stack_and_half_loads_on_the_core_that_likes_them(name: str) -> None:
    target = registry.resolve(name)
    code = tvm.tirx.build(kernels(target), target=registry.to_tvm(target, 1)).inspect_source("asm")
    assert "TVMBackendParallelLaunch" in code
    assert "AllocWorkspace" not in code
    halves = len(re.findall(r"ldr\s+d\d+, \[x\d+, x\d+\]", code))
    assert halves > 100 if loads_halves(target) else not halves
