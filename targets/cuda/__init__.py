"""Descriptions of NVIDIA's GPUs, by compute capability.

Peaks are NVIDIA's figures of dense int8 products on the tensor cores, for a multiprocessor and cycle.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from qcompiler.targets.base import GpuTarget

KIB = 1024
MIB = 1024 * KIB

SM75 = GpuTarget(
    name="cuda-sm75",
    family="cuda",
    mcpu="x86-64",
    llvm_features=(),
    required_features=(),
    instruction="mma.sync",
    vector_bits=128,
    vector_registers=255,
    macs_per_cycle=1024,
    l1_bytes=96 * KIB,
    l2_bytes=4 * MIB,
    microarchitecture="turing",
    architectures=("sm_75",),
    multiprocessors=40,  # of a T4
)

SM80 = replace(
    SM75,
    name="cuda-sm80",
    macs_per_cycle=2048,
    l1_bytes=192 * KIB,
    l2_bytes=40 * MIB,
    microarchitecture="ampere",
    architectures=("sm_80",),
    multiprocessors=108,  # of an A100
)

SM86 = replace(
    SM80,
    name="cuda-sm86",
    macs_per_cycle=1024,
    l1_bytes=128 * KIB,
    l2_bytes=6 * MIB,
    architectures=("sm_86",),
    multiprocessors=72,  # of an A10
)

SM89 = replace(
    SM86,
    name="cuda-sm89",
    l2_bytes=48 * MIB,
    microarchitecture="ada",
    architectures=("sm_89",),
    multiprocessors=58,  # of an L4
)

SM90 = replace(
    SM80,
    name="cuda-sm90",
    macs_per_cycle=4096,  # by wgmma; mma.sync, which the kernels use, reaches a part of it
    l1_bytes=256 * KIB,
    l2_bytes=50 * MIB,
    microarchitecture="hopper",
    architectures=("sm_90",),
    multiprocessors=132,  # of an H100
)

ALL = replace(
    SM75, name="cuda", architectures=("sm_75", "sm_80", "sm_86", "sm_89", "sm_90"), multiprocessors=58
)

GENERIC = (ALL,)
"""One library for every architecture; its kernels are cut for a GPU of middle size."""

CHIPS = (SM75, SM80, SM86, SM89, SM90)
"""Targets of one architecture each."""

_SOURCES = ("instructions.cuh", "device.cuh")


def device_source(*, instructions: bool = True) -> str:
    """The CUDA functions that the kernels call; without the one-instruction functions that they are made of, if asked."""
    folder = Path(__file__).parent
    return "".join(
        (folder / name).read_text(encoding="utf-8") for name in _SOURCES[0 if instructions else 1 :]
    )
