"""The order of the passes, in phases named after what is true afterwards."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from qcompiler.operators import FLOAT_LAYERS
from qcompiler.passes import verify
from qcompiler.passes.bind_threads import BindThreads
from qcompiler.passes.canonicalize import Canonicalize
from qcompiler.passes.expose_padding import ExposePadding
from qcompiler.passes.fuse_float import DropPrecision, FuseFloat
from qcompiler.passes.graph import bindings, op_name
from qcompiler.passes.lower_integer import Kernel, Layer, LowerInteger, Tunable
from qcompiler.passes.lower_sorts import LowerSorts
from qcompiler.passes.plan_layout import PlanLayout
from qcompiler.passes.propagate_quantization import PropagateQuantization
from qcompiler.passes.rewrite_to_integer import RewriteToInteger
from qcompiler.passes.schedule_float import ScheduleFloat
from qcompiler.passes.store_bfloat16 import StoreBfloat16
from qcompiler.passes.store_signed import StoreSigned
from qcompiler.passes.trace_fusion import TraceFusion
from qcompiler.passes.unsigned_activations import UseUnsignedActivations
from qcompiler.targets.base import GpuTarget, Target
from qcompiler.targets.borders import Borders
from qcompiler.targets.workload import Scheduler, default_schedule

log = logging.getLogger(__name__)


class Dump:
    """Writes a numbered file a pass into a folder, or nothing without one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.count = 0
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name: str, module: tvm.IRModule) -> None:
        if self.folder is not None:
            path = self.folder / f"{self.count:02d}-{name}.py"
            path.write_text(module.script(), encoding="utf-8")
        self.count += 1


def _name(step: Any) -> str:
    named = getattr(step, "info", None)
    name = str(named.name) if named is not None else type(step).__name__
    return re.sub(r"\W+", "_", name)


def _apply(steps: Sequence[Any], module: tvm.IRModule, dump: Dump) -> tvm.IRModule:
    for step in steps:
        module = step(module)
        dump(_name(step), module)
    return module


@dataclass(frozen=True)
class Integer:
    """The module after the phase *integer*.

    Attributes:
        module: Relax module with ``qc.*`` operators: what the reference interprets.
        notes: why operators were left in float, by the name of their variable.
    """

    module: tvm.IRModule
    notes: dict[str, str]


def to_integer(module: tvm.IRModule, dump: Dump) -> Integer:
    """Phases *canonical* and *integer*: quantized operators are integer operators, scales are folded.

    Raises:
        PassError: a phase left what the next cannot take.
    """
    dump("Imported", module)
    # Canonical: one spelling for every operator, constants folded, activations in uint8.
    module = _apply([Canonicalize(), UseUnsignedActivations()], module, dump)
    verify.canonical(module)
    # Integer: quantize and dequantize stand only where float begins and ends.
    rewrite = RewriteToInteger()
    common = relax.transform.EliminateCommonSubexpr()
    module = _apply([PropagateQuantization(), common, rewrite, common], module, dump)
    verify.integer(module)
    return Integer(module, rewrite.notes)


@dataclass(frozen=True)
class Physical:
    """The module after the phase *physical*: kernels only.

    Attributes:
        module: Relax module of calls of scheduled TensorIR.
        layers: the integer operators and what became of them.
        tunable: kernels with more than one schedule, by their names in the module.
        kernels: for each call of a kernel in ``main``, in order, its name, and the names that the variables it computes
            had in the module of the phase *integer* (a digit may follow where there were several).
    """

    module: tvm.IRModule
    layers: list[Layer]
    tunable: dict[str, Tunable]
    kernels: tuple[tuple[str, tuple[str, ...]], ...]


def to_physical(
    module: tvm.IRModule,
    target: Target,
    tvm_target: tvm.target.Target,
    lowerings: Mapping[str, Callable[[relax.Call, Target], Kernel | None]],
    dump: Dump,
    scheduler: Scheduler = default_schedule,
    borders: Borders | None = None,
) -> Physical:
    """Phase *physical*: layouts are the target's, weights are packed, every operator is a scheduled kernel."""
    lower = LowerInteger(target, lowerings, scheduler, borders)
    expose = [ExposePadding(target, borders)] if borders else []
    signed = [StoreSigned()] if target.activations == "int8" else []
    fuse: list[Any] = [DropPrecision()]
    if lowerings.keys() >= FLOAT_LAYERS:
        multiplies = target.bf16_macs_per_cycle > 0
        fuse = [FuseFloat(multiplies), *([StoreBfloat16()] if multiplies else [])]
    module = _apply([*fuse, PlanLayout(), *expose, *signed, lower], module, dump)
    # What is left is float or moves bytes: TVM's legalization and fusion, then loops for this target.
    trace = TraceFusion()
    with tvm_target:
        # TVM's sorts and scans for GPUs are several kernels in one, which have no schedule here.
        cpu = not isinstance(target, GpuTarget)
        if not cpu:
            verify.on_gpus(module)
        scans = [LowerSorts(), relax.backend.DispatchSortScan()] if cpu else []
        module = _apply(
            [
                *scans,
                relax.transform.FastMathTransform(),
                relax.transform.LegalizeOps(),
                relax.transform.AnnotateTIROpPattern(),
            ],
            module,
            dump,
        )
        trace.before(module)
        module = _apply([relax.transform.FuseOps()], module, dump)
        trace.after(module)
        module = _apply(
            [
                relax.transform.FuseTIR(),
                relax.transform.DeadCodeElimination(),
                BindThreads() if isinstance(target, GpuTarget) else ScheduleFloat(target.vector_bits),
            ],
            module,
            dump,
        )
    verify.physical(module)
    called = [b.value.args[0].name_hint for b in bindings(module) if op_name(b.value) == "relax.call_tir"]
    return Physical(module, lower.layers, lower.tunable, tuple(zip(called, trace.origins, strict=True)))


def to_machine(module: tvm.IRModule, tvm_target: tvm.target.Target, dump: Dump) -> tvm.IRModule:
    """Phase *machine*: memory is planned, the main function is ready for the virtual machine.

    The plan gives every tensor a place in few blocks, which live as long as the call. Nothing is gained by freeing
    tensors one by one, so TVM's KillAfterLastUse, an instruction a tensor, is left out.
    """
    steps: list[Any] = [
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.CanonicalizeBindings(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.LowerRuntimeBuiltin(),
        relax.transform.ComputePrimValue(),
        relax.transform.VMShapeLower(),
        relax.transform.AttachGlobalSymbol(),
    ]
    with tvm_target:
        return _apply(steps, module, dump)
