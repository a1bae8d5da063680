"""From sums to the output: bias, residual, requantization, and the bounds that prove them exact.

A sum of integers is exact in a float as long as no partial sum, in any order, passes 2**24 (float32) or 2**53
(float64). ``255 * sum(abs(weight))`` bounds every partial sum, so the weights themselves choose the dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from qcompiler.errors import VerificationError
from qcompiler.reference.site import Array, Site

FLOAT32_EXACT = 1 << 24
"""Every integer up to this magnitude is a float32."""
INT32_MAX = (1 << 31) - 1


def check_int32(values: Array, where: str, what: str) -> None:
    """Raises VerificationError if an integer in ``values`` (int64 or an integral float) is no int32."""
    if not values.size:
        return
    low, high = int(values.min()), int(values.max())
    if low < -INT32_MAX - 1 or high > INT32_MAX:
        raise VerificationError(
            f"{where}: {what} is {high if high > INT32_MAX else low}, which overflows int32; "
            "split the operator or keep it in float"
        )


def requantize(product: Array, zero_point: int, lo: int, hi: int) -> Array:
    """``clip(rne(product) + zero_point, lo, hi)`` as uint8; overwrites ``product`` (float32).

    The addition is done in float32: it is exact up to 2**24, and what lies beyond is clipped either way.
    """
    np.rint(product, out=product)
    product += np.float32(zero_point)
    np.clip(product, np.float32(lo), np.float32(hi), out=product)
    return product.astype(np.uint8)


def clip_bounds(site: Site) -> tuple[int, int]:
    """Attributes ``lo`` and ``hi``, checked to be an interval of uint8."""
    lo, hi = site.integer("lo"), site.integer("hi")
    if not 0 <= lo <= hi <= 255:
        raise VerificationError(f"{site.where} clips to [{lo}, {hi}]; allowed: 0 <= lo <= hi <= 255")
    return lo, hi


@dataclass(frozen=True, eq=False)
class Epilogue:
    """From sums to the output; the per-channel arrays are shaped to broadcast against the sums.

    Attributes:
        bias: integers in ``dtype``.
        multiplier: float32.
        residual: multiplier and offset as int64 and the shift, or None.
        dtype: float32 if every accumulator is exact in it, else float64.
        may_overflow: the weights, bias and residual allow an accumulator beyond int32.
    """

    where: str
    bias: Array
    multiplier: Array
    residual: tuple[Array, Array, int] | None
    dtype: type[np.floating]
    may_overflow: bool
    to_float: bool
    zero_point: int
    lo: int
    hi: int

    def __call__(self, sums: Array, residual: Array | None) -> Array:
        acc = sums.astype(self.dtype, copy=False)
        acc += self.bias
        if self.may_overflow:
            check_int32(acc, self.where, "an accumulator")
        if self.residual is not None:
            assert residual is not None
            acc += self._residual_term(residual).astype(self.dtype)
            if self.may_overflow:
                check_int32(acc, self.where, "an accumulator with its residual")
        # From float64 too this rounds an integer once, to nearest even, as the conversion of an int32 does.
        product = acc.astype(np.float32, copy=False)
        product *= self.multiplier
        if self.to_float:
            return product
        return requantize(product, self.zero_point, self.lo, self.hi)

    def _residual_term(self, residual: Array) -> Array:
        assert self.residual is not None
        multiplier, offset, shift = self.residual
        if _residual_extent(multiplier, offset) <= INT32_MAX:
            term = residual * multiplier.astype(np.int32)
            term += offset.astype(np.int32)
        else:
            term = residual * multiplier
            term += offset
            check_int32(term, self.where, "the residual's term")
        term >>= shift
        return term


def _residual_extent(multiplier: Array, offset: Array) -> int:
    """Largest magnitude of ``residual * multiplier + offset`` over residuals from 0 to 255."""
    return int(max(np.abs(offset).max(initial=0), np.abs(255 * multiplier + offset).max(initial=0)))


def prepare_epilogue(
    site: Site, weight: Array, rest: Sequence[Array], channel_shape: tuple[int, ...]
) -> Epilogue:
    """The epilogue of a call with ``rest`` = bias, multiplier[, residual multiplier, residual offset]."""
    for array in rest:
        if array.shape != (weight.shape[0],):
            raise VerificationError(
                f"{site.where} has a per-channel argument of shape {array.shape}; its weight has "
                f"{weight.shape[0]} output channels"
            )
    if not np.isfinite(rest[1]).all():
        raise VerificationError(f"{site.where} has a multiplier that is not finite; check the scales")
    bias = rest[0].astype(np.int64)
    bound = _partial_sums(weight) + np.abs(bias)
    residual = None
    if len(rest) > 2:
        multiplier, offset, shift = (
            rest[2].astype(np.int64),
            rest[3].astype(np.int64),
            site.integer("residual_shift"),
        )
        bound += np.maximum(np.abs(offset >> shift), np.abs((255 * multiplier + offset) >> shift))
        residual = (multiplier.reshape(channel_shape), offset.reshape(channel_shape), shift)
    largest = int(bound.max(initial=0))
    dtype = np.float32 if largest <= FLOAT32_EXACT else np.float64
    to_float = site.text("out_dtype") == "float32"
    lo, hi = (0, 255) if to_float else clip_bounds(site)
    return Epilogue(
        where=site.where,
        bias=bias.astype(dtype).reshape(channel_shape),
        multiplier=rest[1].reshape(channel_shape),
        residual=residual,
        dtype=dtype,
        may_overflow=largest > INT32_MAX,
        to_float=to_float,
        zero_point=0 if to_float else site.integer("zero_point"),
        lo=lo,
        hi=hi,
    )


def _partial_sums(weight: Array) -> Array:
    """Bound of every partial sum of an output channel, int64."""
    bound: Array = 255 * np.abs(weight.astype(np.int64)).reshape(weight.shape[0], -1).sum(axis=1)
    return bound


def sum_dtype(weight: Array) -> type[np.floating]:
    """The dtype in which sums of products with ``weight`` [O, ...] are exact."""
    return np.float32 if _partial_sums(weight).max(initial=0) <= FLOAT32_EXACT else np.float64
