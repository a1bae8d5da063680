"""The end of a kernel that sums products, in tensor expressions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from tvm import te
from tvm.ir import Expr

from qcompiler.targets.cpu.storage import UNSIGNED, Requantize, Storage

R = TypeVar("R", bound=Requantize)


@dataclass(frozen=True)
class Epilogue(Generic[R]):
    """What happens to an accumulator.

    Attributes:
        requantization: to a stored activation, or None for a float32 result.
        residual_shift: the residual's shift, or None without a residual.
        storage: how activations are stored.
    """

    requantization: R | None
    residual_shift: int | None
    storage: Storage = UNSIGNED

    @property
    def residual(self) -> int | None:
        """Position of the residual among the arguments."""
        return None if self.residual_shift is None else 2

    def arguments(self, blocks: int, lanes: int, output: Sequence[int]) -> list[te.Tensor]:
        """Placeholders: bias, multiplier, and with a residual the residual, its multiplier and its offset."""
        args = [
            te.placeholder((blocks, lanes), "int32", name="bias"),
            te.placeholder((blocks, lanes), "float32", name="multiplier"),
        ]
        if self.residual_shift is not None:
            args.append(te.placeholder(tuple(output), self.storage.dtype, name="residual"))
            args.append(te.placeholder((blocks, lanes), "int32", name="residual_multiplier"))
            args.append(te.placeholder((blocks, lanes), "int32", name="residual_offset"))
        return args

    def __call__(
        self,
        accumulator: Expr,
        block: Expr,
        lane: Expr,
        args: Sequence[te.Tensor],
        residual: Expr | None,
    ) -> Expr:
        value = accumulator + args[0][block, lane]
        if self.residual_shift is not None:
            assert residual is not None
            share = residual.astype("int32") * args[3][block, lane] + args[4][block, lane]
            value = value + (share >> self.residual_shift if self.residual_shift else share)
        scaled = value.astype("float32") * args[1][block, lane]
        return scaled if self.requantization is None else self.requantization(scaled)

    @property
    def dtype(self) -> str:
        return "float32" if self.requantization is None else self.storage.dtype
