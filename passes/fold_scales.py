"""Scales, zero points and biases folded into the constants of integer operators.

With ``x = s_x (q_x - z_x)`` and ``w = s_w[o] q_w`` a convolution or a matrix product is::

    y[o] = sum(x w) + b[o] = s_x s_w[o] (sum(q_x q_w) - z_x sum(q_w) + b[o] / (s_x s_w[o]))

so ``bias = rne(b / (s_x s_w)) - z_x sum(q_w)`` in int32, and requantization to ``s_y`` multiplies by
``s_x s_w[o] / s_y`` in float32. A residual ``r = s_r (q_r - z_r)`` joins the accumulator at the accumulator's scale:
``r / (s_x s_w[o]) = (q_r - z_r) m / 2**k`` with ``m = rne(2**k s_r / (s_x s_w[o]))``, shifted with rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.operators import RESIDUAL_MULTIPLIER_LIMIT
from qcompiler.passes.quantized import Affine, Weight

INT32_MAX = 2**31 - 1

BIAS_LIMIT = 2**30
"""Biases stay below this; channels whose weights are that small get a coarser scale."""

RESIDUAL_BITS = 8
"""Bits after the point that every channel's residual keeps; the error is then below half a unit of the accumulator."""


class AccumulatorOverflowError(Exception):
    """An accumulator could leave int32; the message says by how much."""


@dataclass(frozen=True)
class Residual:
    """The residual's constants: int32 a channel, and the shift."""

    multiplier: NDArray[np.int32]
    offset: NDArray[np.int32]
    shift: int


@dataclass(frozen=True)
class Folded:
    """Constants of an integer convolution or matrix product.

    Attributes:
        weight: int8, output channels first.
        bias: int32 a channel, the input's zero point included.
        multiplier: float32 a channel; the accumulator's scale divided by the output's.
        residual: the residual's constants, or None.
        accumulator_bound: largest magnitude that an accumulator can have, for any input.
    """

    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    multiplier: NDArray[np.float32]
    residual: Residual | None
    accumulator_bound: int


def fold(
    weight: Weight, bias: NDArray[np.float64], x: Affine, out_scale: float, residual: Affine | None = None
) -> Folded:
    """Folds a layer's scales.

    Args:
        weight: int8 weights and their scales.
        bias: real bias a channel, ``[O]``.
        x: the input's parameters.
        out_scale: the output's scale, or 1 for an output of real numbers.
        residual: parameters of the residual that is added, or None.

    Raises:
        AccumulatorOverflowError: some input drives an accumulator out of int32.
    """
    values, scales = _usable(weight, bias, x.scale, residual.scale if residual else None)
    unit = x.scale * scales
    flat = values.reshape(values.shape[0], -1).astype(np.int64)
    folded = np.rint(bias / unit).astype(np.int64) - x.zero_point * flat.sum(axis=1)
    high = 255 * np.where(flat > 0, flat, 0).sum(axis=1)
    low = 255 * np.where(flat < 0, flat, 0).sum(axis=1)
    reach = np.maximum(np.abs(high), np.abs(low))
    high, low = high + folded, low + folded
    share = None
    if residual is not None:
        share = _fold_residual(residual, unit)
        ends = [(q * share.multiplier.astype(np.int64) + share.offset) >> share.shift for q in (0, 255)]
        high, low = high + np.maximum(*ends), low + np.minimum(*ends)
    bound = int(max(np.abs(high).max(), np.abs(low).max(), reach.max(), np.abs(folded).max()))
    if bound > INT32_MAX:
        raise AccumulatorOverflowError(f"its accumulator can reach {bound}, above the {INT32_MAX} of int32")
    return Folded(values, folded.astype(np.int32), (unit / out_scale).astype(np.float32), share, bound)


def _usable(
    weight: Weight, bias: NDArray[np.float64], x_scale: float, residual_scale: float | None
) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    """Weights and scales whose unit can hold the bias and the residual.

    A channel of nearly zero weights has a scale so small that its bias, counted in it, would leave int32. Such a
    channel takes the smallest scale that holds them; its weights lose digits that are far below the output's.
    """
    least = np.abs(bias) / BIAS_LIMIT
    if residual_scale is not None:
        least = np.maximum(least, residual_scale * 2.0**RESIDUAL_BITS / (RESIDUAL_MULTIPLIER_LIMIT - 1))
    least = least / x_scale
    coarse = weight.scales < least
    if not coarse.any():
        return weight.values, weight.scales
    scales = np.where(coarse, least, weight.scales)
    ratio = (weight.scales / scales).reshape(-1, *([1] * (weight.values.ndim - 1)))
    return np.rint(weight.values * ratio).astype(np.int8), scales


def _fold_residual(residual: Affine, unit: NDArray[np.float64]) -> Residual:
    ratio = residual.scale / unit
    shift = 0
    while shift < 22 and np.rint(ratio.max() * 2.0 ** (shift + 1)) < RESIDUAL_MULTIPLIER_LIMIT:
        shift += 1
    multiplier = np.rint(ratio * 2.0**shift).astype(np.int64)
    offset = -residual.zero_point * multiplier + (1 << shift >> 1)
    return Residual(multiplier.astype(np.int32), offset.astype(np.int32), shift)


@dataclass(frozen=True)
class Addition:
    """Constants of ``qc.add``."""

    a_multiplier: int
    b_multiplier: int
    offset: int
    shift: int


def fold_addition(a: Affine, b: Affine, out: Affine, b_sign: int = 1) -> Addition | None:
    """Constants of ``a + b_sign * b`` quantized to ``out``, or None if the scales are too far apart for int32."""
    ratios = (a.scale / out.scale, b.scale / out.scale)
    # Two products of a byte and a multiplier, the zero points and the rounding fit in int32 below 2**20.
    shift = 20
    while shift >= 0:
        multipliers = (round(ratios[0] * 2.0**shift), b_sign * round(ratios[1] * 2.0**shift))
        offset = -a.zero_point * multipliers[0] - b.zero_point * multipliers[1]
        offset += (out.zero_point << shift) + (1 << shift >> 1)
        if 255 * (abs(multipliers[0]) + abs(multipliers[1])) + abs(offset) <= INT32_MAX:
            return Addition(*multipliers, offset, shift)
        shift -= 1
    return None
