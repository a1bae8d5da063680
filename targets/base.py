"""What a target is: plain data, checked when it is made. Describing a target never needs the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qcompiler.errors import TargetError

DotProduct = Literal["vpdpbusd", "vpmaddwd", "smull", "sdot", "smmla", "mma.sync"]
"""Instruction that multiplies and accumulates 8-bit integers into 32 bits, under the vendor's name."""


@dataclass(frozen=True)
class QuantizationRules:
    """What the target's integer kernels accept; the quantizer takes its rules from here.

    Activations are ``uint8`` with one scale and zero point a tensor. Weights are ``int8``, symmetric, one
    scale an output channel.

    Attributes:
        activation_range: inclusive range of quantized activations.
        weight_range: inclusive range of quantized weights.
        operators: operator classes that have an integer kernel. Names: ``conv2d``, ``linear``, ``add``,
            ``mul``, ``concat``, ``max_pool2d``, ``avg_pool2d`` (adaptive pooling and spatial means included),
            ``elementwise`` (unary operators, by table), ``data_movement`` (reshape, permute, slice, split,
            pad, nearest up-sampling).
    """

    activation_range: tuple[int, int] = (0, 255)
    weight_range: tuple[int, int] = (-127, 127)
    operators: frozenset[str] = frozenset(
        {
            "conv2d",
            "linear",
            "add",
            "mul",
            "concat",
            "max_pool2d",
            "avg_pool2d",
            "elementwise",
            "data_movement",
        }
    )


@dataclass(frozen=True)
class Target:
    """A chip as the compiler sees it.

    Attributes:
        name: the name a user gives, such as ``x86-avx512-vnni``.
        family: folder of the target's kernels: ``x86``, ``arm``, ``cuda``.
        mcpu: LLVM's name of the processor that code is scheduled for.
        llvm_features: LLVM features added to ``mcpu``'s, as ``+avx512vnni``.
        required_features: features, named as in ``/proc/cpuinfo``, without which the library must not run.
        instruction: the multiply-accumulate instruction of the integer kernels.
        vector_bits: width of the vector registers that the kernels use.
        vector_registers: how many of them there are.
        macs_per_cycle: peak 8-bit multiply-accumulates a cycle and core with ``instruction``.
        l1_bytes: level-1 data cache of one core.
        l2_bytes: level-2 cache of one core.
        microarchitecture: archspec's name of the chip or of the generic level.
        half_vector_cost: cost of a multiply-accumulate of half of the vector, relative to its share: 1 where
            two halves take as long as the whole, 2 where they take twice as long.
        has_vbmi: byte permutations over two registers (``vpermi2b``) exist.
        float_macs_per_cycle: peak float32 fused multiply-adds a cycle and core; 0 where no kernel is scheduled by it.
        bf16_macs_per_cycle: peak bfloat16 multiply-accumulates a cycle and core with ``vdpbf16ps``; 0 without it.
        opt_level: LLVM's optimization level, 0 to 3.
        rules: what the quantizer may use.
    """

    name: str
    family: Literal["x86", "arm", "cuda"]
    mcpu: str
    llvm_features: tuple[str, ...]
    required_features: tuple[str, ...]
    instruction: DotProduct
    vector_bits: int
    vector_registers: int
    macs_per_cycle: int
    l1_bytes: int
    l2_bytes: int
    microarchitecture: str
    half_vector_cost: float = 1.0
    has_vbmi: bool = False
    float_macs_per_cycle: int = 0
    bf16_macs_per_cycle: int = 0
    opt_level: int = 3
    rules: QuantizationRules = QuantizationRules()

    def __post_init__(self) -> None:
        if self.vector_bits not in (128, 256, 512):
            raise TargetError(
                f"target {self.name}: vector_bits is {self.vector_bits}; allowed: 128, 256, 512"
            )
        for name in ("vector_registers", "macs_per_cycle", "l1_bytes", "l2_bytes"):
            if getattr(self, name) <= 0:
                raise TargetError(f"target {self.name}: {name} is {getattr(self, name)}; it must be positive")
        if self.opt_level not in range(4):
            raise TargetError(f"target {self.name}: opt_level is {self.opt_level}; allowed: 0, 1, 2, 3")

    @property
    def activations(self) -> Literal["uint8", "int8"]:
        """How an activation q of 0 to 255 is stored: as it is, or as q - 128 for instructions on signed numbers."""
        return "int8" if self.instruction in ("smull", "sdot", "smmla") else "uint8"

    @property
    def int32_lanes(self) -> int:
        """32-bit lanes of one vector register."""
        return self.vector_bits // 32


@dataclass(frozen=True)
class GpuTarget(Target):
    """A GPU beside an x86-64 processor; what a description of a processor says is said of its parts.

    ``mcpu`` is the host's processor. ``vector_bits`` is the widest access of a thread, ``vector_registers`` how many
    32-bit registers it can have, ``macs_per_cycle`` the peak of one multiprocessor, ``l1_bytes`` its memory for the
    first-level cache and shared memory together, and ``l2_bytes`` the chip's second-level cache.

    Attributes:
        architectures: that machine code is made for, ascending, as ``sm_80``; for later ones there is PTX of the last.
        multiprocessors: of the chip that kernels are cut for.
        shared_bytes: shared memory that a block may have.
        block_threads: threads that a block may have.
        block_registers: registers of 32 bits that the threads of a block may have together.
    """

    architectures: tuple[str, ...] = ()
    multiprocessors: int = 1
    shared_bytes: int = 48 * 1024
    block_threads: int = 1024
    block_registers: int = 64 * 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.architectures or list(self.architectures) != sorted(set(self.architectures)):
            raise TargetError(
                f"target {self.name}: architectures are {self.architectures}; give at least one, ascending, as sm_80"
            )
        for name in ("multiprocessors", "shared_bytes", "block_threads", "block_registers"):
            if getattr(self, name) <= 0:
                raise TargetError(f"target {self.name}: {name} is {getattr(self, name)}; it must be positive")
