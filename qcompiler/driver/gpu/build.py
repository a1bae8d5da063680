"""Builds the library of a model for GPUs, and counts the instructions of its kernels."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from qcompiler.driver.gpu import embed, nvrtc, sass
from qcompiler.targets.base import GpuTarget


def build_library(executable: Any, target: GpuTarget, library: Path) -> dict[str, Counter[str]]:
    """Writes a library with machine code for the target's architectures, and PTX for later ones.

    Args:
        executable: what ``relax.build`` made for the target.
        target: the GPU.
        library: path of the file.

    Returns:
        How often each instruction of ``sass.MNEMONICS`` stands in each kernel, by its name in TVM: the least of all
        architectures.

    Raises:
        BuildError: NVIDIA's libraries are missing, or the code does not compile.
    """
    counts: dict[str, Counter[str]] = {}

    def compile_source(source: str) -> bytes:
        code = nvrtc.compile_source(source, target.architectures)
        for cubin in code.cubins.values():
            for kernel, found in sass.counts_by_kernel(cubin).items():
                counts[kernel] = min(counts.get(kernel, found), found, key=lambda c: c.total())
        return code.fatbin

    embed.export_library(executable, library, compile_source)
    return counts
