"""Number formats of the dense x86 kernels: what is multiplied, what it is added to, and by which instruction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tvm.ir import Expr

from qcompiler.operators import BFLOAT16_BITS
from qcompiler.targets.base import Target
from qcompiler.targets.cpu.bfloat16 import from_bfloat16


@dataclass(frozen=True)
class Arithmetic:
    """Formats of a multiply-accumulate ``accumulator[lane] += sum(activation[k] * weight[lane, k] for k in word)``.

    Attributes:
        activation: dtype of the activations in memory.
        weight: dtype of the packed weights.
        accumulator: dtype of the sums.
        word: products of a lane in one step.
    """

    activation: str
    weight: str
    accumulator: str
    word: int

    @property
    def activation_bytes(self) -> int:
        return int(np.dtype(self.activation).itemsize)

    @property
    def weight_bytes(self) -> int:
        return int(np.dtype(self.weight).itemsize)

    def __str__(self) -> str:
        names = ["bfloat16" if d == BFLOAT16_BITS else d for d in (self.activation, self.weight)]
        return f"{' x '.join(names)} -> {self.accumulator}"

    def product(self, activation: Expr, weight: Expr) -> Expr:
        """The product of two elements, in the accumulator's dtype."""
        return self._widened(activation, self.activation) * self._widened(weight, self.weight)

    def _widened(self, value: Expr, dtype: str) -> Expr:
        if self.accumulator == "float32" and dtype == BFLOAT16_BITS:
            return from_bfloat16(value)
        return value.astype(self.accumulator)


INT8 = Arithmetic("uint8", "int8", "int32", 4)
FLOAT32 = Arithmetic("float32", "float32", "float32", 1)
FLOAT16_WEIGHTS = Arithmetic("float32", "float16", "float32", 1)
BFLOAT16_WEIGHTS = Arithmetic("float32", BFLOAT16_BITS, "float32", 1)
INT8_WEIGHTS = Arithmetic("float32", "int8", "float32", 1)
BFLOAT16 = Arithmetic(BFLOAT16_BITS, BFLOAT16_BITS, "float32", 2)


def float_arithmetic(target: Target, precision: str) -> Arithmetic:
    """The formats of a float layer of ``precision``, as in ``qcompiler.operators``.

    Sums are float32 always. Without an instruction that multiplies 16-bit floats, only the weights are of 16 bits.
    """
    if precision == "bfloat16":
        return BFLOAT16 if target.bf16_macs_per_cycle else BFLOAT16_WEIGHTS
    return {"float32": FLOAT32, "float16": FLOAT16_WEIGHTS, "int8_weights": INT8_WEIGHTS}[precision]
