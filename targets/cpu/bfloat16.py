"""bfloat16 by its bits: the upper half of a float32.

TVM would compute with values of its own dtype bfloat16 in float32, a conversion at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tvm import te, tirx
from tvm.ir import Expr

from qcompiler.operators import BFLOAT16_BITS


def from_bfloat16(bits: Expr) -> Expr:
    """The float32 of a bfloat16's bits: they are its upper half."""
    return tirx.reinterpret("float32", bits.astype("uint32") << tirx.const(16, "uint32"))


def to_bfloat16(value: Expr) -> Expr:
    """The bits of the nearest bfloat16, ties to even; not a number stays one."""
    bits = tirx.reinterpret("uint32", value)
    sixteen, one = tirx.const(16, "uint32"), tirx.const(1, "uint32")
    rounded = (bits + tirx.const(0x7FFF, "uint32") + ((bits >> sixteen) & one)) >> sixteen
    quiet = (bits >> sixteen) | tirx.const(0x40, "uint32")
    return tirx.Select(value.equal(value), rounded, quiet).astype(BFLOAT16_BITS)


def bfloat16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """As :func:`to_bfloat16`, of finite numbers."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def conversion(x: te.Tensor) -> te.Tensor:
    """``qc.to_bfloat16`` of a tensor, to be fused with what computes it."""
    return te.compute(x.shape, lambda *i: to_bfloat16(x[i]), name="bits")
