"""Multiply-accumulates a cycle of every layer's inner loop, estimated from the machine code."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qcompiler import runtime
from qcompiler.driver.cross import emulator, instructions
from qcompiler.driver.cross.model import emulated_cpu
from qcompiler.driver.machine_code.estimate import estimate
from qcompiler.driver.machine_code.library import Function, kernel_functions
from qcompiler.driver.machine_code.loops import inner_loop
from qcompiler.driver.machines import MACHINES
from qcompiler.errors import BuildError, TargetError
from qcompiler.runtime import Manifest
from qcompiler.runtime.library import map_constants
from qcompiler.runtime.manifest import LIBRARY_NAME
from qcompiler.targets import registry
from qcompiler.targets.base import GpuTarget


@dataclass(frozen=True)
class StaticRow:
    """A layer's inner loop.

    Attributes:
        name: the layer.
        operator: its operator.
        instruction: its multiply-accumulate instruction.
        macs: multiply-accumulates of the layer.
        loop_instructions: instructions of a turn.
        loop_macs: multiply-accumulates of a turn.
        bound_share: of the target's peak, were the busiest of the chip's units never to wait.
        macs_per_cycle: what LLVM's analyzer says; None without it.
        peak_share: the same as a share of the target's peak.
        method: the analyzer and its model of the processor, or None.
        executed: instructions that a run executes in the layer's kernel; None where they were not counted.
    """

    name: str
    operator: str
    instruction: str
    macs: int
    loop_instructions: int
    loop_macs: int
    bound_share: float
    macs_per_cycle: float | None
    peak_share: float | None
    method: str | None
    executed: int | None


@dataclass(frozen=True)
class StaticProfile:
    """What :func:`static_profile` found.

    Attributes:
        rows: layers that multiply with the target's instruction in a loop, in the order they run.
        without_loop: names of those that have it outside of loops only, and no row.
        target: the target's name.
        peak: multiply-accumulates a cycle and core.
        executed: instructions that a run executes in the library, all kernels together; None if not counted.
        counting: how they were counted, or why not, in words.
    """

    rows: tuple[StaticRow, ...]
    without_loop: tuple[str, ...]
    target: str
    peak: int
    executed: int | None
    counting: str


def static_profile(
    bundle: Path, *, count: bool = True, require_signature: Path | None = None
) -> StaticProfile:
    """Estimates the inner loop of every layer; the bundle may be for any architecture.

    Where the bundle's architecture can be emulated, one run is emulated to count the instructions that it executes.

    Args:
        bundle: the bundle's folder.
        count: emulate a run where that is possible.
        require_signature: a public key; the bundle must be signed by its owner.

    Raises:
        BundleError: the bundle is damaged.
        BuildError: its library cannot be disassembled.
        TargetError: its target is not known here, or is a GPU.
    """
    manifest = runtime.verify(bundle, require_signature=require_signature)
    target = registry.resolve(manifest.target_name)
    if isinstance(target, GpuTarget):
        raise TargetError(
            f"target {target.name}: loops of GPU code are not estimated; 'qcompile inspect' counts its instructions"
        )
    library = bundle / LIBRARY_NAME
    kernels = kernel_functions(library)
    blocks, counting = _executed(bundle, manifest) if count else (None, "not counted, as asked")
    callers = Counter(layer.function for layer in manifest.layers)
    found: dict[str, StaticRow | None] = {}
    rows, without_loop = [], []
    for layer in manifest.layers:
        if layer.instruction is None:
            continue
        if layer.function not in found:
            loop = inner_loop(kernels[layer.function])
            row = None
            if loop is not None:
                result = estimate(library, loop, target)
                rate = loop.macs / result.simulated if result.simulated else None
                row = StaticRow(
                    layer.name, layer.operator, layer.instruction, layer.macs, len(loop.instructions), loop.macs,
                    loop.macs / result.bound / target.macs_per_cycle, rate,
                    rate / target.macs_per_cycle if rate else None, result.method,
                    None if blocks is None else _within(blocks, kernels[layer.function]) // callers[layer.function],
                )  # fmt: skip
            found[layer.function] = row
        row = found[layer.function]
        if row is None:
            without_loop.append(layer.name)
        else:
            rows.append(replace(row, name=layer.name))
    return StaticProfile(
        tuple(rows), tuple(without_loop), target.name, target.macs_per_cycle,
        None if blocks is None else sum(blocks.values()), counting,
    )  # fmt: skip


def _executed(bundle: Path, manifest: Manifest) -> tuple[dict[int, int] | None, str]:
    """Instructions that a run on zeros executes, by the addresses of their blocks, and how they were counted or why not."""
    family = str(manifest.target["family"])
    if MACHINES[family].name == platform.machine():
        return None, "not counted, since this machine runs the bundle itself: qcompile profile"
    try:
        found = emulator.find(family)
    except BuildError as error:
        return None, f"not counted: {error}"
    cpu = emulated_cpu(manifest)
    inputs = [np.zeros(spec.shape, spec.dtype) for spec in manifest.inputs]
    constants = map_constants(bundle, manifest)
    blocks = instructions.count(bundle / LIBRARY_NAME, inputs, constants, family=family, cpu=cpu)
    return (
        blocks,
        f"one run on one thread, counted by {found.qemu.name} -cpu {cpu} from the blocks that it enters",
    )


def _within(blocks: Mapping[int, int], functions: Sequence[Function]) -> int:
    """Instructions of the blocks that begin in ``functions``."""
    return sum(n for address, n in blocks.items() if any(f.start <= address < f.end for f in functions))
