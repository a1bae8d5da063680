"""Descriptions of 64-bit ARM chips.

The generic targets ask for no more than their instruction needs, so their libraries run on every chip that has it; the
named ones add what one microarchitecture has, and LLVM's scheduling model of it.
"""

from __future__ import annotations

from dataclasses import replace

from qcompiler.targets.base import Target

KIB = 1024

_V8 = ("fp", "asimd")
_V8_2 = (*_V8, "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "asimddp")
_V8_4 = ("fcma", "asimdfhm", "uscat", "ilrcpc", "flagm")

NEON = Target(
    name="arm-neon",
    family="arm",
    mcpu="generic",
    llvm_features=(),
    required_features=_V8,
    instruction="smull",
    vector_bits=128,
    vector_registers=32,
    # One smull or smlal of eight products a cycle, on Cortex-A72 and A53.
    macs_per_cycle=8,
    l1_bytes=32 * KIB,
    l2_bytes=512 * KIB,
    microarchitecture="aarch64",
    # At level 3 LLVM unrolls the reductions and has to spill accumulators.
    opt_level=2,
)

DOTPROD = replace(
    NEON,
    name="arm-dotprod",
    llvm_features=("+dotprod",),
    required_features=(*_V8, "asimddp"),
    instruction="sdot",
    # Two sdot of 16 products a cycle, on Cortex-A76 and Neoverse-N1.
    macs_per_cycle=32,
    l1_bytes=64 * KIB,
)

I8MM = replace(
    DOTPROD,
    name="arm-i8mm",
    llvm_features=("+dotprod", "+i8mm"),
    required_features=(*_V8, "asimddp", "i8mm"),
    instruction="smmla",
    # Two smmla of 32 products a cycle, on Cortex-A710.
    macs_per_cycle=64,
)

CORTEX_A53 = replace(
    NEON,
    name="arm-cortex-a53",
    mcpu="cortex-a53",
    microarchitecture="aarch64",
)

CORTEX_A72 = replace(
    NEON,
    name="arm-cortex-a72",
    mcpu="cortex-a72",
    l2_bytes=1024 * KIB,
    microarchitecture="cortex_a72",
)

CORTEX_A55 = replace(
    DOTPROD,
    name="arm-cortex-a55",
    mcpu="cortex-a55",
    # A pair of loads of 128 bits takes as long as three loads.
    llvm_features=("+slow-paired-128",),
    required_features=_V8_2,
    macs_per_cycle=16,  # one sdot of 128 bits a cycle
    l1_bytes=32 * KIB,
    l2_bytes=128 * KIB,
    microarchitecture="armv8.2a",
)

CORTEX_A76 = replace(
    CORTEX_A55,
    name="arm-cortex-a76",
    mcpu="cortex-a76",
    llvm_features=(),
    macs_per_cycle=32,
    l1_bytes=64 * KIB,
    l2_bytes=256 * KIB,
)

NEOVERSE_N1 = replace(
    CORTEX_A76,
    name="arm-neoverse-n1",
    mcpu="neoverse-n1",
    l2_bytes=1024 * KIB,
    microarchitecture="neoverse_n1",
)

APPLE_M1 = replace(
    DOTPROD,
    name="arm-apple-m1",
    mcpu="apple-m1",
    llvm_features=(),
    required_features=(*_V8_2, *_V8_4, "sha3", "flagm2"),
    # Four sdot a cycle on a performance core.
    macs_per_cycle=64,
    l1_bytes=128 * KIB,
    l2_bytes=3072 * KIB,  # a core's share of 12 MiB
    microarchitecture="m1",
)

# LLVM's own choice of a vector length would be SVE's; the kernels are written for 128 bits.
CORTEX_A710 = replace(
    I8MM,
    name="arm-cortex-a710",
    mcpu="cortex-a710",
    llvm_features=("-sve", "-sve2"),
    required_features=(*_V8_2, *_V8_4, "flagm2", "i8mm", "bf16"),
    l2_bytes=512 * KIB,
    microarchitecture="armv9.0a",
)

NEOVERSE_V1 = replace(
    I8MM,
    name="arm-neoverse-v1",
    mcpu="neoverse-v1",
    llvm_features=("-sve",),
    required_features=(*_V8_2, *_V8_4, "sha3", "i8mm", "bf16"),
    macs_per_cycle=128,  # four smmla a cycle
    l2_bytes=1024 * KIB,
    microarchitecture="neoverse_v1",
)

GENERIC = (I8MM, DOTPROD, NEON)
"""Targets of one instruction each, fastest first."""

CHIPS = (
    CORTEX_A53,
    CORTEX_A55,
    CORTEX_A72,
    CORTEX_A76,
    CORTEX_A710,
    NEOVERSE_N1,
    NEOVERSE_V1,
    APPLE_M1,
)
"""Targets of one microarchitecture each."""

MCPU_ALIASES = {
    "cortex-a57": "cortex-a72",
    "cortex-a73": "cortex-a72",
    "cortex-a77": "cortex-a76",
    "cortex-a78": "cortex-a76",
    "cortex-x1": "cortex-a76",
    "apple-m2": "apple-m1",
    "neoverse-512tvb": "neoverse-v1",
}
"""LLVM's names of processors that another one's description fits."""
