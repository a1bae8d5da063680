"""Instructions of ARM that multiply and add 8-bit integers, as expressions on 128-bit vectors.

Each function is one instruction, or the few that stand for it, under the vendor's name; its docstring says what it
computes, with ``x`` for activations (stored as q - 128) and ``w`` for weights. All are exact on the whole range but
``smull_smlal``, which says its condition.
"""

from __future__ import annotations

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.cpu.vectors import shuffle

VECTOR_BYTES = 16
INT32X4 = "int32x4"
INT8X16 = "int8x16"


def sdot(acc: Expr, w: Expr, x: Expr) -> Expr:
    """``acc[i] += sum(w[4 i + k] * x[4 i + k] for k in range(4))`` for four lanes i."""
    return tirx.call_llvm_pure_intrin(INT32X4, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc, w, x)


def smmla(acc: Expr, x: Expr, w: Expr) -> Expr:
    """``acc[2 r + c] += sum(x[8 r + k] * w[8 c + k] for k in range(8))`` for two rows r and two columns c."""
    return tirx.call_llvm_pure_intrin(INT32X4, "llvm.aarch64.neon.smmla.v4i32.v16i8", acc, x, w)


def smull(w: Expr, x: Expr) -> Expr:
    """``w[i] * x[i]`` of eight lanes, in int16, where every product of two int8 fits."""
    return tirx.call_llvm_pure_intrin("int16x8", "llvm.aarch64.neon.smull.v8i16", w, x)


def smull_smlal(w0: Expr, x0: Expr, w1: Expr, x1: Expr) -> Expr:
    """``w0[i] * x0[i] + w1[i] * x1[i]`` of eight lanes, in int16.

    It fits where no two products are both 128 * 128: weights of -127 to 127 are enough.
    """
    return smull(w0, x0) + smull(w1, x1)


def sadalp(acc: Expr, products: Expr) -> Expr:
    """``acc[i] += products[2 i] + products[2 i + 1]`` for four lanes i."""
    pairs = tirx.call_llvm_pure_intrin(INT32X4, "llvm.aarch64.neon.saddlp.v4i32.v8i16", products)
    return acc + pairs


def addp(a: Expr, b: Expr) -> Expr:
    """Sums of adjacent lanes: ``a[0] + a[1], a[2] + a[3], b[0] + b[1], b[2] + b[3]``."""
    return tirx.call_llvm_pure_intrin(INT32X4, "llvm.aarch64.neon.addp.v4i32", a, b)


def fcvtns(value: Expr) -> Expr:
    """Nearest int32 of four float32, halves to even; beyond int32 the nearest bound."""
    return tirx.call_llvm_pure_intrin(INT32X4, "llvm.aarch64.neon.fcvtns.v4i32.v4f32", value)


def words_of(x: Expr) -> int:
    """Words of four bytes in a vector of bytes."""
    return int(str(x.ty.dtype).partition("x")[2]) // 4


def dup_word(x: Expr, lane: int) -> Expr:
    """Four bytes of eight or sixteen, four times: LLVM makes it a part of ``sdot``, or one ``dup``."""
    count = words_of(x)
    words = tirx.reinterpret(f"int32x{count}", x)
    # A shuffle may give no more lanes than it is given.
    return tirx.reinterpret(INT8X16, shuffle([words] * (4 // count), [lane] * 4))


def low(value: Expr) -> Expr:
    """The first eight of sixteen bytes."""
    return shuffle([value], range(8))


def high(value: Expr) -> Expr:
    """The last eight of sixteen bytes."""
    return shuffle([value], range(8, 16))


def zip_halves(a: Expr, b: Expr, half: int) -> Expr:
    """Eight bytes of ``a`` and the same eight of ``b``."""
    return shuffle([a, b], [*range(8 * half, 8 * half + 8), *range(16 + 8 * half, 24 + 8 * half)])
