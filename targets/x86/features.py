"""Names of x86 features: LLVM's, and those of ``/proc/cpuinfo`` that requirements are written in."""

from __future__ import annotations

from collections.abc import Iterable

CPUINFO_NAMES = {
    "sse3": "pni",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "sse4a": "sse4a",
    "popcnt": "popcnt",
    "cx16": "cx16",
    "sahf": "lahf_lm",
    "lzcnt": "abm",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "movbe": "movbe",
    "adx": "adx",
    "avx": "avx",
    "f16c": "f16c",
    "fma": "fma",
    "avx2": "avx2",
    "avxvnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512vnni": "avx512_vnni",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avx512vp2intersect": "avx512_vp2intersect",
    "aes": "aes",
    "pclmul": "pclmulqdq",
    "vaes": "vaes",
    "vpclmulqdq": "vpclmulqdq",
    "gfni": "gfni",
    "sha": "sha_ni",
}
"""LLVM features whose instructions a compiler may choose, with their names in ``/proc/cpuinfo``.

What every x86-64 processor has (SSE2 and older) is left out, and so are features that LLVM uses only when a
program names the instruction (key lockers, matrix tiles, cache hints, random numbers, user interrupts):
hypervisors hide these first, and a library that does without them would be refused for nothing.
"""

_LLVM_NAMES = {cpuinfo: llvm for llvm, cpuinfo in CPUINFO_NAMES.items()}


def cpuinfo_features(llvm_features: Iterable[str]) -> tuple[str, ...]:
    """The features that code of ``llvm_features`` needs, named as in ``/proc/cpuinfo``, oldest first."""
    enabled = set(llvm_features)
    return tuple(cpuinfo for llvm, cpuinfo in CPUINFO_NAMES.items() if llvm in enabled)


def without(cpuinfo_names: Iterable[str]) -> tuple[str, ...]:
    """LLVM options, such as ``-gfni``, that forbid the features ``cpuinfo_names``."""
    return tuple(f"-{_LLVM_NAMES[name]}" for name in cpuinfo_names)
