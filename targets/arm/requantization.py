"""The last step of ARM's kernels: from int32 or float32 to a stored activation q - 128."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.arm.intrinsics import fcvtns
from qcompiler.targets.cpu.storage import SIGNED
from qcompiler.targets.cpu.vectors import shuffle


def lanes_of(value: Expr) -> int:
    """Lanes of a vector; 1 of a scalar."""
    _, _, lanes = str(value.ty.dtype).partition("x")
    return int(lanes or 1)


def _dtype(name: str, lanes: int) -> str:
    return name if lanes == 1 else f"{name}x{lanes}"


def _constant(number: float, dtype: str, lanes: int) -> Expr:
    scalar = tirx.const(number, dtype)
    return scalar if lanes == 1 else tirx.Broadcast(scalar, lanes)


def _narrowed(value: Expr, source: str, target: str) -> Expr:
    """``sqxtn``: half as many bits, with saturation."""
    lanes = lanes_of(value)
    least, most = {"int16": (-(2**15), 2**15 - 1), "int8": (-128, 127)}[target]
    bounded = tirx.max(tirx.min(value, _constant(most, source, lanes)), _constant(least, source, lanes))
    return bounded.astype(_dtype(target, lanes))


def store(value: Expr, shift: int, lo: int, hi: int) -> Expr:
    """``clip(value + shift, lo, hi) - 128`` of int32, for a ``shift`` of -255 to 255 and bounds in 0 to 255.

    Every step saturates where the result is at a bound already, so nothing overflows.
    """
    lanes = lanes_of(value)
    words = _narrowed(value, "int32", "int16")
    shift -= SIGNED.offset
    if shift:
        words = tirx.call_llvm_pure_intrin(
            _dtype("int16", lanes), "llvm.sadd.sat", words, _constant(shift, "int16", lanes)
        )
    result = _narrowed(words, "int16", "int8")
    if lo > 0:
        result = tirx.max(result, _constant(lo - SIGNED.offset, "int8", lanes))
    if hi < 255:
        result = tirx.min(result, _constant(hi - SIGNED.offset, "int8", lanes))
    return result


@dataclass(frozen=True)
class Requantization:
    """``clip(rne(value) + zero_point, lo, hi)``, stored as q - 128.

    Attributes:
        zero_point: added after rounding, 0 to 255.
        lo: lower bound of the result, 0 or more.
        hi: upper bound of the result, 255 or less.
    """

    zero_point: int
    lo: int
    hi: int

    def __call__(self, value: Expr) -> Expr:
        """``value`` is a float32 or a vector of them."""
        lanes = lanes_of(value)
        rounded = tirx.call_llvm_pure_intrin(str(value.ty.dtype), "llvm.roundeven", value)
        # Saturates, as fcvtzs does; a plain conversion is undefined beyond int32.
        integer = tirx.call_llvm_pure_intrin(_dtype("int32", lanes), "llvm.fptosi.sat", rounded)
        return store(integer, self.zero_point, self.lo, self.hi)

    def of_vectors(self, values: Sequence[Expr]) -> Expr:
        """The same of vectors of four float32 each, as one vector of bytes."""
        integers = [fcvtns(value) for value in values]
        joined = integers[0]
        if len(integers) > 1:
            joined = shuffle(integers, range(4 * len(integers)))
        return store(joined, self.zero_point, self.lo, self.hi)


def bounded(value: Expr, lo: int, hi: int) -> Expr:
    """An int32 between ``lo`` and ``hi``, stored as q - 128."""
    return store(value, 0, lo, hi)
