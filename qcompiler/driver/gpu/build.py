"""Builds the library of a model for GPUs, and counts the instructions of its kernels."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tvm
from tvm import relax

from qcompiler.driver.gpu import embed, nvrtc, sass
from qcompiler.driver.gpu.limits import Kernels, verified
from qcompiler.passes.lower_integer import Layer
from qcompiler.targets.base import GpuTarget


def build_module(
    module: tvm.IRModule, target: GpuTarget, tvm_target: tvm.target.Target, library: Path, layers: Iterable[Layer]
) -> dict[str, Counter[str]]:  # fmt: skip
    """Compiles a model after its last phase into a library; what it returns and raises is :func:`build_library`'s.

    Args:
        module: the module after the phase *machine*.
        target: the GPU.
        tvm_target: the same for TVM.
        library: path of the file.
        layers: what became of the model's layers, to name them in messages.
    """
    of_kernel: defaultdict[str, list[str]] = defaultdict(list)
    for layer in layers:
        of_kernel[layer.kernel].append(layer.name)
    with embed.source_only(), verified(target, of_kernel) as kernels:
        executable = relax.build(module, tvm_target, relax_pipeline=None)
    return build_library(executable, kernels, library)


def build_functions(
    module: tvm.IRModule, target: GpuTarget, tvm_target: tvm.target.Target, library: Path
) -> None:
    """Compiles scheduled kernels and functions of the host that call them into a library.

    Raises:
        BuildError: as of :func:`build_library`.
    """
    with embed.source_only(), verified(target) as kernels:
        built = tvm.compile(module, target=tvm_target)
    build_library(built, kernels, library)


def build_library(executable: Any, kernels: Kernels, library: Path) -> dict[str, Counter[str]]:
    """Writes a library with machine code for the target's architectures, and PTX for later ones.

    Args:
        executable: what ``relax.build`` made for the target.
        kernels: what was verified when it was made, and the GPU.
        library: path of the file.

    Returns:
        How often each instruction of ``sass.MNEMONICS`` stands in each kernel, by its name in TVM: the least of all
        architectures.

    Raises:
        BuildError: NVIDIA's libraries are missing, the code does not compile, or a kernel takes more than the GPU has.
    """
    counts: dict[str, Counter[str]] = {}

    def compile_source(source: str) -> bytes:
        code = nvrtc.compile_source(source, kernels.target.architectures)
        kernels.check(code.resources)
        for cubin in code.cubins.values():
            for kernel, found in sass.counts_by_kernel(cubin).items():
                counts[kernel] = min(counts.get(kernel, found), found, key=lambda c: c.total())
        return code.fatbin

    embed.export_library(executable, library, compile_source)
    return counts
