"""Counts of values, as fine for small values as for large ones.

A bin is the 256th part of a power of two: the leading 16 bits of a float32 are its number. So a bin is never wider than
the 255th part of the values in it, whatever else is in the tensor; bins of one width would put everything beside an
outlier of a million times the typical value into one. The counts do not depend on how the data is cut into batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

SMALLEST = 2.0**-60
"""Magnitudes below it count as zero."""

_MANTISSA_BITS = 8
_SHIFT = 23 - _MANTISSA_BITS
_MAGNITUDE = 0x7FFFFFFF


def _bits(value: float) -> int:
    return int(torch.tensor(value, dtype=torch.float32).view(torch.int32))


_FIRST = (_bits(SMALLEST) >> _SHIFT) - 1
"""What a bin's number lacks to the leading bits of the values in it; bin 0 is for zeros."""


@dataclass(frozen=True)
class Bins:
    """The bins that hold any value, in the order of the values; all float64 of one length.

    Attributes:
        lows: lower ends.
        highs: upper ends; equal to the lower one for zeros.
        counts: how many values there are.
    """

    lows: torch.Tensor
    highs: torch.Tensor
    counts: torch.Tensor

    @property
    def centers(self) -> torch.Tensor:
        return (self.lows + self.highs) / 2

    @property
    def widths(self) -> torch.Tensor:
        return self.highs - self.lows

    def without_zeros(self) -> Bins:
        """Zero has an exact quantized value in every range, and after a relu half of all values are zero."""
        used = self.widths > 0
        return Bins(self.lows[used], self.highs[used], self.counts[used])


class Histogram:
    """Counts values of float32 tensors.

    Attributes:
        low: the least value seen, or 0.
        high: the largest value seen, or 0.
    """

    def __init__(self) -> None:
        self._counts = {False: torch.zeros(1, dtype=torch.int64), True: torch.zeros(1, dtype=torch.int64)}
        self.low, self.high = 0.0, 0.0

    def add(self, x: torch.Tensor, low: float, high: float) -> None:
        """Counts the values of ``x``, which are finite and have the extremes ``low`` and ``high``."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        flat = x.detach().float().flatten()
        negative = flat < 0 if low < 0 else None
        keys = ((flat.view(torch.int32) & _MAGNITUDE) >> _SHIFT) - _FIRST
        keys = keys.clamp_(min=0)
        self._count(keys if negative is None else keys[~negative], is_negative=False)
        if negative is not None:
            self._count(keys[negative], is_negative=True)

    def _count(self, keys: torch.Tensor, *, is_negative: bool) -> None:
        if not keys.numel():
            return
        old = self._counts[is_negative]
        new = torch.bincount(keys, minlength=old.numel())
        new[: old.numel()] += old
        self._counts[is_negative] = new

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(sum(int(c.sum()) for c in self._counts.values()))

    def bins(self) -> Bins:
        zeros = sum(int(counts[0]) for counts in self._counts.values())
        parts = [self._side(is_negative=True), self._side(is_negative=False)]
        if zeros:
            nothing = torch.zeros(1, dtype=torch.float64)
            parts.insert(1, (nothing, nothing, torch.tensor([zeros], dtype=torch.float64)))
        return Bins(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def _side(self, *, is_negative: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        counts = self._counts[is_negative]
        used = counts.nonzero()[:, 0]
        used = used[used > 0]
        leading = used + _FIRST
        # The end of the last bin may be infinity to float32, so both ends are computed from exponent and mantissa.
        exponents = (leading >> _MANTISSA_BITS).double() - 127.0
        step = torch.exp2(exponents) / 2**_MANTISSA_BITS
        mantissas = (leading & (2**_MANTISSA_BITS - 1)) + 2**_MANTISSA_BITS
        inner, outer, found = mantissas * step, (mantissas + 1) * step, counts[used].double()
        if is_negative:
            return (-outer).flip(0), (-inner).flip(0), found.flip(0)
        return inner, outer, found
