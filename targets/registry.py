"""The known targets: names to descriptions, and descriptions to what TVM calls a target."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qcompiler.errors import TargetError
from qcompiler.targets import arm, cuda, x86
from qcompiler.targets.arm import features as arm_features
from qcompiler.targets.base import GpuTarget, Target
from qcompiler.targets.host import Host, read_host
from qcompiler.targets.x86 import features as x86_features

if TYPE_CHECKING:
    import tvm

NATIVE = "native"
"""Name of the target that describes the machine it is resolved on."""

_TRIPLES = {
    "x86": "x86_64-unknown-linux-gnu",
    "arm": "aarch64-unknown-linux-gnu",
    "cuda": "x86_64-unknown-linux-gnu",
}
"""LLVM's name of the platform, by target family; for a GPU that of its host."""

_FAMILIES: dict[str, tuple[Any, Any]] = {"x86_64": (x86, x86_features), "aarch64": (arm, arm_features)}
"""What describes the processors of a machine, by its name in ``platform.machine``."""

_TARGETS: dict[str, Target] = {
    t.name: t for family in (x86, arm, cuda) for t in (*family.GENERIC, *family.CHIPS)
}


def known() -> tuple[Target, ...]:
    """All targets, family by family: the generic ones, fastest first, then those of one microarchitecture."""
    return tuple(_TARGETS.values())


def resolve(name: str) -> Target:
    """The target called ``name``.

    ``native`` stands for the processor that this runs on: the description of its microarchitecture, or the
    fastest generic one that its feature flags allow. Features that the flags lack are forbidden to LLVM, as
    hypervisors hide some; cache sizes are the machine's own where it tells them.

    Raises:
        TargetError: the name is unknown, or ``native`` is asked for on a processor without a target.
    """
    if name == NATIVE:
        return _native(read_host(), _system_cpu())
    if name in _TARGETS:
        return _TARGETS[name]
    related = [
        t.name for t in known() if name in (t.mcpu, t.microarchitecture, t.name.removeprefix(f"{t.family}-"))
    ]
    near = related or difflib.get_close_matches(name, [*_TARGETS, NATIVE], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join((NATIVE, *_TARGETS))};"
    raise TargetError(f"unknown target {name!r}; {hint} run 'qcompile targets'")


def to_tvm(target: Target, cores: int) -> tvm.target.Target:
    """TVM's target for code of ``target``.

    Args:
        target: the chip.
        cores: threads that the library is expected to run on; a hint, at least 1.

    Raises:
        TargetError: ``cores`` is below 1, or the installed LLVM does not know the processor.
    """
    import tvm
    from tvm.target import codegen

    if cores < 1:
        raise TargetError(f"target {target.name}: cores is {cores}; it must be at least 1")
    triple = _TRIPLES[target.family]
    # LLVM would warn about an unknown name and go on with a processor from the year 2003.
    if not codegen.llvm_is_valid_cpu(target.mcpu, triple):
        raise TargetError(
            f"target {target.name}: LLVM {codegen.llvm_version_major()} does not know mcpu {target.mcpu!r}; "
            "install the pinned apache-tvm, or choose a generic target: qcompile targets"
        )
    config: dict[str, Any] = {
        "kind": "llvm",
        "mtriple": triple,
        "mcpu": target.mcpu,
        "num-cores": cores,
        "opt-level": target.opt_level,
    }
    if target.llvm_features:
        config["mattr"] = list(target.llvm_features)
    if not isinstance(target, GpuTarget):
        return tvm.target.Target(config)
    # TVM generates one source for all architectures; the instructions that not all have are in device.cuh.
    device = {
        "kind": "cuda",
        "arch": target.architectures[0],
        "max_threads_per_block": target.block_threads,
        "max_shared_memory_per_block": target.shared_bytes,
        "thread_warp_size": 32,
    }
    return tvm.target.Target(device, host=config)


def llvm_features(target: Target) -> frozenset[str]:
    """All features, in LLVM's names, that LLVM enables for ``target``."""
    from tvm.target import codegen

    return frozenset(str(feature) for feature in codegen.llvm_get_cpu_features(to_tvm(target, 1)))


def _system_cpu() -> str:
    from tvm.target import codegen

    return str(codegen.llvm_get_system_cpu())


def _native(host: Host, mcpu: str) -> Target:
    """The target of ``host``, which LLVM calls ``mcpu``."""
    if host.machine not in _FAMILIES:
        raise TargetError(
            f"no target for this machine ({host.machine}); native is known on {' and '.join(_FAMILIES)}; give the "
            "name of the chip that the library is for: qcompile targets"
        )
    family, features = _FAMILIES[host.machine]
    chip = family.MCPU_ALIASES.get(mcpu, mcpu)
    candidates: list[Target] = [*(t for t in family.CHIPS if t.mcpu == chip), *family.GENERIC]
    description = next((t for t in candidates if _essential(t) <= host.features), None)
    if description is None:
        lacks = sorted(_essential(family.GENERIC[-1]) - host.features)
        raise TargetError(
            f"no target for this processor ({host.machine}): it lacks {', '.join(lacks)}; give the name of "
            "the chip that the library is for: qcompile targets"
        )
    hidden = [f for f in description.required_features if f not in host.features]
    target = replace(
        description,
        llvm_features=(*description.llvm_features, *features.without(hidden)),
        has_vbmi=description.has_vbmi and "avx512vbmi" in host.features,
        l1_bytes=host.l1_bytes or description.l1_bytes,
        l2_bytes=host.l2_bytes or description.l2_bytes,
    )
    # Forbidding a feature also forbids what builds on it, so LLVM is asked what is left.
    left = features.cpuinfo_features(llvm_features(target)) if hidden else target.required_features
    return replace(target, required_features=left)


def _essential(target: Target) -> frozenset[str]:
    """What the kernels' instruction and vectors need: what the generic target of the same ones requires."""
    (generic,) = (
        t
        for t in (*x86.GENERIC, *arm.GENERIC)
        if (t.instruction, t.vector_bits) == (target.instruction, target.vector_bits)
    )
    return frozenset(generic.required_features)
