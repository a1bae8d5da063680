"""How quantized activations lie in memory, and what kernels ask of a family's last step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from tvm import tirx
from tvm.ir import Expr


@dataclass(frozen=True)
class Storage:
    """An activation q of 0 to 255 is stored as ``q - offset``.

    Attributes:
        dtype: of the stored number.
        offset: 0, or 128 where the multiply-accumulate instruction wants signed operands.
    """

    dtype: Literal["uint8", "int8"]
    offset: int

    def element(self, q: int) -> Expr:
        """The constant q as it is stored."""
        return tirx.const(q - self.offset, self.dtype)


UNSIGNED = Storage("uint8", 0)
SIGNED = Storage("int8", 128)


class Requantize(Protocol):
    """``clip(rne(value) + zero_point, lo, hi)`` of a float32 or a vector of them, as it is stored."""

    def __call__(self, value: Expr) -> Expr: ...
