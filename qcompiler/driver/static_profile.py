"""Multiply-accumulates a cycle of every layer's inner loop, estimated from the machine code."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from qcompiler import runtime
from qcompiler.driver.machine_code.estimate import estimate
from qcompiler.driver.machine_code.library import kernel_functions
from qcompiler.driver.machine_code.loops import inner_loop
from qcompiler.errors import TargetError
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


@dataclass(frozen=True)
class StaticProfile:
    """What :func:`static_profile` found.

    Attributes:
        rows: layers that multiply with the target's instruction in a loop, in the order they run.
        without_loop: names of those that have it outside of loops only, and no row.
        target: the target's name.
        peak: multiply-accumulates a cycle and core.
    """

    rows: tuple[StaticRow, ...]
    without_loop: tuple[str, ...]
    target: str
    peak: int


def static_profile(bundle: Path, *, require_signature: Path | None = None) -> StaticProfile:
    """Estimates the inner loop of every layer; nothing runs, and the bundle may be for any architecture.

    Args:
        bundle: the bundle's folder.
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
                )  # fmt: skip
            found[layer.function] = row
        row = found[layer.function]
        if row is None:
            without_loop.append(layer.name)
        else:
            rows.append(replace(row, name=layer.name))
    return StaticProfile(tuple(rows), tuple(without_loop), target.name, target.macs_per_cycle)
