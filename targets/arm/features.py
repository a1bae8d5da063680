"""Names of ARM features: LLVM's, and those of ``/proc/cpuinfo`` that requirements are written in."""

from __future__ import annotations

from collections.abc import Iterable

CPUINFO_NAMES = {
    "fp-armv8": ("fp",),
    "neon": ("asimd",),
    "lse": ("atomics",),
    "fullfp16": ("fphp", "asimdhp"),
    "rdm": ("asimdrdm",),
    "complxnum": ("fcma",),
    "rcpc": ("lrcpc",),
    "sha3": ("sha3",),
    "dotprod": ("asimddp",),
    "fp16fml": ("asimdfhm",),
    "lse2": ("uscat",),
    "rcpc-immo": ("ilrcpc",),
    "flagm": ("flagm",),
    "altnzcv": ("flagm2",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
}
"""LLVM features whose instructions a compiler may choose, with their names in ``/proc/cpuinfo``.

Left out are features that LLVM uses only when a program names the instruction (checksums, ciphers, random numbers,
conversions of JavaScript), and those that do nothing on a processor without them (branch targets).
"""

_LLVM_NAMES = {cpuinfo: llvm for llvm, names in CPUINFO_NAMES.items() for cpuinfo in names}


def cpuinfo_features(llvm_features: Iterable[str]) -> tuple[str, ...]:
    """The features that code of ``llvm_features`` needs, named as in ``/proc/cpuinfo``, oldest first."""
    enabled = set(llvm_features)
    return tuple(cpuinfo for llvm, names in CPUINFO_NAMES.items() if llvm in enabled for cpuinfo in names)


def without(cpuinfo_names: Iterable[str]) -> tuple[str, ...]:
    """LLVM options, such as ``-lse``, that forbid the features ``cpuinfo_names``."""
    return tuple(dict.fromkeys(f"-{_LLVM_NAMES[name]}" for name in cpuinfo_names))
