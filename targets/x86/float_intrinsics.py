"""Tensor intrinsics of float kernels: ``C[lane] += sum(A[k] * B[lane, k])`` in float32, A shared by all lanes.

They differ in the formats of A and B (:mod:`qcompiler.targets.x86.arithmetic`). All but ``vdpbf16ps`` are one fused
multiply-add a product; ``vdpbf16ps`` rounds its two products and their sum as it likes to, and flushes denormals.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from qcompiler.targets.x86.arithmetic import (
    BFLOAT16,
    BFLOAT16_WEIGHTS,
    FLOAT16_WEIGHTS,
    FLOAT32,
    INT8_WEIGHTS,
    Arithmetic,
)


def dpbf16(lanes: int) -> str:
    """Name of the function that :func:`imported` defines for ``lanes`` lanes."""
    return f"qc_dpbf16_{lanes}"


def imported(lanes: int) -> str:
    """LLVM code of ``vdpbf16ps`` on operands of 32-bit integers: TVM has no value of LLVM's type ``bfloat``."""
    vector, bits, pairs = f"<{lanes} x float>", f"<{lanes} x i32>", f"<{2 * lanes} x bfloat>"
    intrinsic = f"@llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
    return f"""
declare {vector} {intrinsic}({vector}, {pairs}, {pairs})
define {vector} @{dpbf16(lanes)}({vector} %c, {bits} %a, {bits} %b) {{
  %x = bitcast {bits} %a to {pairs}
  %y = bitcast {bits} %b to {pairs}
  %r = call {vector} {intrinsic}({vector} %c, {pairs} %x, {pairs} %y)
  ret {vector} %r
}}
"""


def _float32(lanes: int) -> tuple[PrimFunc, PrimFunc]:
    vector = f"float32x{lanes}"

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((1,), "float32", offset_factor=1),
        B: T.Buffer((lanes,), "float32", offset_factor=1),
        C: T.Buffer((lanes,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:1], B[0:lanes])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                with T.sblock("update"):
                    vi = T.axis.remap("S", [i])
                    C[vi] = C[vi] + A[0] * B[vi]

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((1,), "float32", offset_factor=1),
        B: T.Buffer((lanes,), "float32", offset_factor=1),
        C: T.Buffer((lanes,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:1], B[0:lanes])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id("llvm.fma"),
                T.broadcast(A[0], lanes),
                B.vload([0], dtype=vector),
                C.vload([0], dtype=vector),
                dtype=vector,
            )

    return description, implementation


def _converted_weights(weight: str, lanes: int) -> tuple[PrimFunc, PrimFunc]:
    vector, half = f"float32x{lanes}", f"{weight}x{lanes}"

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((1,), "float32", offset_factor=1),
        B: T.Buffer((lanes,), weight, offset_factor=1),
        C: T.Buffer((lanes,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:1], B[0:lanes])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                with T.sblock("update"):
                    vi = T.axis.remap("S", [i])
                    C[vi] = C[vi] + A[0] * T.cast(B[vi], "float32")

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((1,), "float32", offset_factor=1),
        B: T.Buffer((lanes,), weight, offset_factor=1),
        C: T.Buffer((lanes,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:1], B[0:lanes])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id("llvm.fma"),
                T.broadcast(A[0], lanes),
                T.cast(B.vload([0], dtype=half), vector),
                C.vload([0], dtype=vector),
                dtype=vector,
            )

    return description, implementation


def _bfloat16_weights(lanes: int) -> tuple[PrimFunc, PrimFunc]:
    vector, bits, wide = f"float32x{lanes}", f"uint16x{lanes}", f"uint32x{lanes}"

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((1,), "float32", offset_factor=1),
        B: T.Buffer((lanes,), "uint16", offset_factor=1),
        C: T.Buffer((lanes,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:1], B[0:lanes])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                with T.sblock("update"):
                    vi = T.axis.remap("S", [i])
                    C[vi] = C[vi] + A[0] * T.reinterpret(
                        T.shift_left(T.cast(B[vi], "uint32"), T.uint32(16)), dtype="float32"
                    )

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((1,), "float32", offset_factor=1),
        B: T.Buffer((lanes,), "uint16", offset_factor=1),
        C: T.Buffer((lanes,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:1], B[0:lanes])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id("llvm.fma"),
                T.broadcast(A[0], lanes),
                T.reinterpret(
                    T.shift_left(T.cast(B.vload([0], dtype=bits), wide), T.broadcast(T.uint32(16), lanes)),
                    dtype=vector,
                ),
                C.vload([0], dtype=vector),
                dtype=vector,
            )

    return description, implementation


def _bfloat16(lanes: int) -> tuple[PrimFunc, PrimFunc]:
    vector, word = f"float32x{lanes}", f"int32x{lanes}"
    function = dpbf16(lanes)

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((2,), "uint16", offset_factor=1),
        B: T.Buffer((lanes, 2), "uint16", offset_factor=1),
        C: T.Buffer((lanes,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 2):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.reinterpret(
                            T.shift_left(T.cast(A[vk], "uint32"), T.uint32(16)), dtype="float32"
                        ) * T.reinterpret(
                            T.shift_left(T.cast(B[vi, vk], "uint32"), T.uint32(16)), dtype="float32"
                        )

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((2,), "uint16", offset_factor=1),
        B: T.Buffer((lanes, 2), "uint16", offset_factor=1),
        C: T.Buffer((lanes,), "float32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:2], B[0:lanes, 0:2])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_pure_extern(
                vector,
                function,
                C.vload([0], dtype=vector),
                T.broadcast(T.reinterpret(A.vload([0], "uint16x2"), dtype="int32"), lanes),
                T.reinterpret(B.vload([0, 0], dtype=f"uint16x{2 * lanes}"), dtype=word),
            )

    return description, implementation


_FORMS: dict[Arithmetic, tuple[str, Callable[[int], tuple[PrimFunc, PrimFunc]]]] = {
    FLOAT32: ("float32", _float32),
    FLOAT16_WEIGHTS: ("float16", partial(_converted_weights, "float16")),
    INT8_WEIGHTS: ("int8_weights", partial(_converted_weights, "int8")),
    BFLOAT16_WEIGHTS: ("bfloat16_weights", _bfloat16_weights),
    BFLOAT16: ("bfloat16", _bfloat16),
}


@cache
def multiply_add(arithmetic: Arithmetic, lanes: int) -> str:
    """Registers the intrinsic of ``arithmetic`` at ``lanes`` 32-bit lanes; returns its name.

    A kernel that uses :data:`BFLOAT16` must import :func:`imported`.
    """
    form, make = _FORMS[arithmetic]
    name = f"qc.x86.{form}.{lanes}"
    TensorIntrin.register(name, *make(lanes), override=True)
    return name
