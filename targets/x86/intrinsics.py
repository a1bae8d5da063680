"""Tensor intrinsics of x86: four 8-bit products a lane, added to 32-bit accumulators.

Each has one meaning, ``dot4``: ``C[lane] += sum(A[k] * B[lane, k] for k in range(4))`` with A in u8, shared by all
lanes, B in i8 and C in i32. They differ in the vendor's instruction. All are exact on the whole range of values;
``vpmaddubsw``, whose pair sums saturate at 16 bits, is not used.

Importing ``tvm.s_tir.tensor_intrin`` would take half a minute, so nothing of it is imported here.
"""

from __future__ import annotations

from functools import cache

from tvm.s_tir import TensorIntrin
from tvm.script import tirx as T
from tvm.tirx import PrimFunc

from qcompiler.targets.base import DotProduct


def dot4_description(lanes: int) -> PrimFunc:
    """What every ``dot4`` intrinsic of ``lanes`` 32-bit lanes computes."""

    @T.prim_func(s_tir=True)
    def description(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            for i in T.serial(0, lanes):
                for k in T.serial(0, 4):
                    with T.sblock("update"):
                        vi, vk = T.axis.remap("SR", [i, k])
                        C[vi] = C[vi] + T.cast(A[vk], "int32") * T.cast(B[vi, vk], "int32")

    return description


def vpdpbusd(lanes: int) -> PrimFunc:
    """``vpdpbusd`` (AVX-512-VNNI with AVX-512-VL, or AVX-VNNI): one instruction a vector of four products a lane."""
    intrinsic = f"llvm.x86.avx512.vpdpbusd.{lanes * 32}"
    byte = f"x{lanes * 4}"
    word = f"int32x{lanes}"

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = T.call_llvm_pure_intrin(
                T.llvm_lookup_intrinsic_id(intrinsic),
                C.vload([0], dtype=word),
                T.reinterpret(
                    T.broadcast(T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), lanes),
                    dtype="uint8" + byte,
                ),
                B.vload([0, 0], dtype="int8" + byte),
                dtype=word,
            )

    return implementation


def vpmaddwd(lanes: int) -> PrimFunc:
    """Two ``vpmaddwd`` on 16-bit halves, for chips without VNNI.

    A 16-bit lane of the operands holds two bytes; the even and the odd bytes are widened in place, by masks and
    shifts, so the packed weights are the same as VNNI's. Products of u8 and i8 and their pair sums fit in 32 bits.
    """
    intrinsic = {8: "llvm.x86.avx2.pmadd.wd", 16: "llvm.x86.avx512.pmaddw.d.512"}[lanes]
    half = f"int16x{lanes * 2}"
    word = f"int32x{lanes}"

    @T.prim_func(s_tir=True)
    def implementation(
        A: T.Buffer((4,), "uint8", offset_factor=1),
        B: T.Buffer((lanes, 4), "int8", offset_factor=1),
        C: T.Buffer((lanes,), "int32", offset_factor=1),
    ) -> None:
        with T.sblock("root"):
            T.reads(C[0:lanes], A[0:4], B[0:lanes, 0:4])
            T.writes(C[0:lanes])
            C[T.ramp(T.int32(0), 1, lanes)] = (
                C.vload([0], dtype=word)
                + T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id(intrinsic),
                    T.bitwise_and(
                        T.reinterpret(
                            T.broadcast(T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), lanes),
                            dtype=half,
                        ),
                        T.broadcast(T.int16(255), lanes * 2),
                    ),
                    T.shift_right(
                        T.shift_left(
                            T.reinterpret(B.vload([0, 0], dtype=f"int8x{lanes * 4}"), dtype=half),
                            T.broadcast(T.int16(8), lanes * 2),
                        ),
                        T.broadcast(T.int16(8), lanes * 2),
                    ),
                    dtype=word,
                )
                + T.call_llvm_pure_intrin(
                    T.llvm_lookup_intrinsic_id(intrinsic),
                    T.reinterpret(
                        T.shift_right(
                            T.reinterpret(
                                T.broadcast(T.reinterpret(A.vload([0], "uint8x4"), dtype="int32"), lanes),
                                dtype="u" + half,
                            ),
                            T.broadcast(T.uint16(8), lanes * 2),
                        ),
                        dtype=half,
                    ),
                    T.shift_right(
                        T.reinterpret(B.vload([0, 0], dtype=f"int8x{lanes * 4}"), dtype=half),
                        T.broadcast(T.int16(8), lanes * 2),
                    ),
                    dtype=word,
                )
            )

    return implementation


@cache
def dot4(instruction: DotProduct, lanes: int) -> str:
    """Registers the ``dot4`` intrinsic of ``instruction`` at ``lanes`` 32-bit lanes; returns its name."""
    name = f"qc.x86.{instruction}.{lanes}"
    implementation = {"vpdpbusd": vpdpbusd, "vpmaddwd": vpmaddwd}[instruction]
    TensorIntrin.register(name, dot4_description(lanes), implementation(lanes), override=True)
    return name
