"""The end of a kernel: sums of int32 become activations or reals, and are written, four channels at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.cuda.kernel import Kernel, bind, store, view, when


@dataclass(frozen=True)
class Requantization:
    """``clip(rne(value) + zero_point, lo, hi)``.

    Attributes:
        zero_point: added after rounding.
        lo: lower bound of the result, 0 or more.
        hi: upper bound of the result, 255 or less.
    """

    zero_point: int
    lo: int
    hi: int

    def __call__(self, value: Expr) -> Expr:
        """``value`` is a float32 of any magnitude; the result is a byte.

        ``__float2int_rn`` rounds halves to even and saturates; bounds before it would change nothing but for the sum
        with the zero point, which must not leave int32.
        """
        # Bounding before rounding gives the same: the bounds are integers and rounding is monotonic.
        value = tirx.max(
            tirx.min(value, tirx.const(float(self.hi - self.zero_point), "float32")),
            tirx.const(float(self.lo - self.zero_point), "float32"),
        )
        integer = tirx.call_pure_extern("int32", "__float2int_rn", value)
        return (integer + self.zero_point).astype("uint8")


def bounded(value: Expr, lo: int, hi: int) -> Expr:
    """An int32 between ``lo`` and ``hi`` as a byte."""
    return tirx.max(tirx.min(value, tirx.const(hi, "int32")), tirx.const(lo, "int32")).astype("uint8")


@dataclass(frozen=True)
class Epilogue:
    """What happens to an accumulator, the bias included.

    Attributes:
        requantization: to a byte, or None for a float32 result.
        residual_shift: the residual's shift, or None without a residual.
    """

    requantization: Requantization | None
    residual_shift: int | None

    @property
    def dtype(self) -> str:
        return "float32" if self.requantization is None else "uint8"


def byte(word: Expr, position: int) -> Expr:
    """A byte of a word, as an int32 of 0 to 255."""
    return (word >> (8 * position) if position else word) & 255


def pack(bytes_: Sequence[Expr]) -> Expr:
    """Four bytes as a word, the first in its low bits."""
    first, *rest = (b.astype("int32") for b in bytes_)
    for position, value in enumerate(rest, 1):
        first = first | (value << (8 * position))
    return first


class Finish:
    """Writes the results of a kernel with ``groups`` of ``channels`` output channels each.

    The constants of a group are padded to ``padded`` channels.
    """

    def __init__(
        self,
        kernel: Kernel,
        epilogue: Epilogue,
        extents: Sequence[int],
        groups: int,
        channels: int,
        padded: int,
    ) -> None:
        self.epilogue, self.channels, self.padded = epilogue, channels, padded
        self.row = groups * channels
        constants = groups * padded
        self.bias = kernel.argument("bias", (constants,), "int32")
        self.multiplier = kernel.argument("multiplier", (constants,), "float32")
        if epilogue.residual_shift is not None:
            self.residual = kernel.argument("residual", extents, "uint8")
            self.residual_multiplier = kernel.argument("residual_multiplier", (constants,), "int32")
            self.residual_offset = kernel.argument("residual_offset", (constants,), "int32")
        self.out = kernel.argument("out", extents, epilogue.dtype)
        self.words = channels % 4 == 0

    def start(self) -> None:
        """After the launch, before :meth:`write`: how memory is seen."""
        self.flat_out = view(
            self.out, "int32" if self.words and self.epilogue.dtype == "uint8" else self.epilogue.dtype
        )
        if self.epilogue.residual_shift is not None:
            self.flat_residual = view(self.residual, "int32" if self.words else "uint8")

    def write(self, pixel: Expr, group: Expr | int, channel: Expr, sums: Sequence[Expr]) -> None:
        """Writes the sums of a pixel from ``channel`` of a group on; both are multiples of four where ``words``.

        Channels beyond the group's are not written.
        """
        step = 4 if self.words else 1
        for first in range(0, len(sums), step):
            with when(channel + first < self.channels):
                self._write(pixel, group, channel + first, sums[first : first + step])

    def _write(self, pixel: Expr, group: Expr | int, channel: Expr, sums: Sequence[Expr]) -> None:
        constant = bind(group * self.padded + channel)
        place = bind(pixel * self.row + group * self.channels + channel)
        residuals: list[Expr] = []
        if self.epilogue.residual_shift is not None:
            if self.words:
                word = bind(self.flat_residual[tirx.floordiv(place, 4)])
                residuals = [byte(word, k) for k in range(4)]
            else:
                residuals = [self.flat_residual[place].astype("int32")]
        values = []
        for k, total in enumerate(sums):
            total = total + self.bias[constant + k]
            if residuals:
                share = (
                    residuals[k] * self.residual_multiplier[constant + k] + self.residual_offset[constant + k]
                )
                shift = self.epilogue.residual_shift
                total = total + (share >> shift if shift else share)
            values.append(total.astype("float32") * self.multiplier[constant + k])
        last = self.epilogue.requantization
        if last is None:
            for k, value in enumerate(values):
                store(self.flat_out, place + k, value)
        elif self.words:
            store(self.flat_out, tirx.floordiv(place, 4), pack([last(v) for v in values]))
        else:
            store(self.flat_out, place, last(values[0]))
