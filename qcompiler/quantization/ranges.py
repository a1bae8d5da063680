"""Ranges of a tensor from the histogram of its values.

Each function gives ``(low, high)`` with ``low <= 0 <= high``, within the extremes of what was counted.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from qcompiler.quantization.histogram import SMALLEST, Bins, Histogram

Range = tuple[float, float]

_LINEAR = 24
"""Candidates for an end of a range, evenly spaced between zero and the extreme."""

_REFINED = 12
"""Candidates between the neighbours of the best one."""


def percentile(histogram: Histogram, percent: float) -> Range:
    """The range that holds ``percent`` percent of the values, as many left out at either end.

    Args:
        histogram: counts of the values.
        percent: in (50, 100].
    """
    bins = histogram.bins()
    if not bins.counts.numel():
        return histogram.low, histogram.high
    outside = float(bins.counts.sum()) * (1.0 - percent / 100.0) / 2.0
    low = _value_at(bins.lows, bins.highs, bins.counts, outside)
    high = _value_at(bins.highs.flip(0), bins.lows.flip(0), bins.counts.flip(0), outside)
    return min(max(low, histogram.low), 0.0), max(min(high, histogram.high), 0.0)


def _value_at(starts: torch.Tensor, ends: torch.Tensor, counts: torch.Tensor, rank: float) -> float:
    """The value before which ``rank`` values lie; within a bin they are taken to be spread evenly."""
    cumulative = counts.cumsum(0)
    index = min(int((cumulative <= rank).sum()), len(counts) - 1)
    share = (rank - float(cumulative[index] - counts[index])) / float(counts[index])
    return float(starts[index]) + share * float(ends[index] - starts[index])


def least_squares(histogram: Histogram, steps: int) -> Range:
    """The range whose quantization has the least mean squared error, clipping and rounding together.

    Args:
        histogram: counts of the values.
        steps: quantized values less one, such as 255.
    """
    bins = histogram.bins().without_zeros()
    centers, widths = bins.centers, bins.widths

    def errors(lows: torch.Tensor, highs: torch.Tensor) -> torch.Tensor:
        scales = ((highs - lows) / steps).clamp(min=SMALLEST)[:, None]
        clipped = torch.minimum(torch.maximum(centers[None, :], lows[:, None]), highs[:, None])
        # A step wider than a bin rounds all of the bin to the same number, small values to zero. Of a finer step the
        # error is uniform over the step: its variance is scale**2 / 12.
        at_center = (torch.round(clipped / scales) * scales - clipped) ** 2
        rounding = torch.where(scales > widths, at_center, scales**2 / 12.0)
        inside = clipped == centers[None, :]
        return ((centers[None, :] - clipped) ** 2 + inside * rounding) @ bins.counts

    return _search(histogram, bins, errors)


def entropy(histogram: Histogram, steps: int) -> Range:
    """The range whose quantization has the least Kullback-Leibler divergence from the values' distribution.

    The distribution P has what lies outside the range in the outermost bins of the range. Q has the values of the range
    alone, each quantized value's share spread over its bins in proportion to their widths (Migacz, "8-bit inference
    with TensorRT", 2017, which has bins of one width). Zeros are left out of both.

    Args:
        histogram: counts of the values.
        steps: quantized values less one, such as 255.
    """
    bins = histogram.bins().without_zeros()
    centers, widths, counts = bins.centers, bins.widths, bins.counts

    def divergence(low: float, high: float) -> float:
        # By the lower end of a bin's magnitude, so that the bin of an extreme is inside.
        first = int(torch.searchsorted(bins.highs, low, right=True))
        last = int(torch.searchsorted(bins.lows, high, right=False))
        if first >= last:
            return float("inf")
        inside = counts[first:last]
        p = inside.clone()
        p[0] += counts[:first].sum()
        p[-1] += counts[last:].sum()
        levels = torch.round(centers[first:last] * (steps / max(high - low, SMALLEST * steps))).long()
        levels = levels - levels[0]
        masses = torch.bincount(levels, inside)
        spans = torch.bincount(levels, widths[first:last])
        q = masses[levels] * widths[first:last] / spans[levels]
        p, q = p / p.sum(), q / q.sum()
        return float((p * torch.log(p / q)).sum())

    def divergences(lows: torch.Tensor, highs: torch.Tensor) -> torch.Tensor:
        pairs = zip(lows.tolist(), highs.tolist(), strict=True)
        return torch.tensor([divergence(low, high) for low, high in pairs], dtype=torch.float64)

    return _search(histogram, bins, divergences)


def _search(
    histogram: Histogram, bins: Bins, errors: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Range:
    """The range of the least error; one end after the other, twice: the error is smooth in each."""
    low, high = histogram.low, histogram.high
    if not bins.counts.numel():
        return low, high
    for _ in range(2):
        if histogram.low < 0:
            low = _best(
                _candidates(histogram.low, bins),
                lambda ends: errors(ends, torch.full_like(ends, high)),  # noqa: B023
            )
        if histogram.high > 0:
            high = _best(
                _candidates(histogram.high, bins),
                lambda ends: errors(torch.full_like(ends, low), ends),  # noqa: B023
            )
    return low, high


def _candidates(extreme: float, bins: Bins) -> torch.Tensor:
    """Ends of a range, the extreme first.

    An outlier may be many powers of two away, so halves, quarters, ... are among them, down to half of the median of
    the values of this sign.
    """
    side = (bins.centers > 0) == (extreme > 0)
    magnitudes, counts = bins.centers[side].abs(), bins.counts[side]
    order = magnitudes.argsort()
    cumulative = counts[order].cumsum(0)
    median = float(magnitudes[order][int((cumulative < cumulative[-1] / 2).sum())]) if len(order) else 0.0
    octaves = max(0, math.ceil(math.log2(abs(extreme) / median)) + 1) if median else 0
    shares = [k / _LINEAR for k in range(_LINEAR, 0, -1)] + [2.0**-k for k in range(1, octaves + 1)]
    return torch.tensor(sorted(set(shares), reverse=True), dtype=torch.float64) * extreme


def _best(candidates: torch.Tensor, errors: Callable[[torch.Tensor], torch.Tensor]) -> float:
    found = errors(candidates)
    best = int(torch.argmin(found))
    outer, inner = candidates[max(best - 1, 0)], candidates[min(best + 1, len(candidates) - 1)]
    refined = torch.linspace(0, 1, _REFINED, dtype=torch.float64) * (inner - outer) + outer
    # The best of the first look comes first, and stays if none is better.
    refined = torch.cat([candidates[best : best + 1], refined])
    return float(refined[int(torch.argmin(errors(refined)))])
