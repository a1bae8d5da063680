"""How the ranges of activations are found.

Every observer gives a range that includes zero, as one scale and zero point for uint8: ``scale = (high - low) / 255``,
``zero_point = rne(-low / scale)``. Memory does not grow with the number of batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchao.quantization.pt2e.observer import MinMaxObserver, ObserverBase

from qcompiler.config import CompileConfig

SMALLEST_SCALE = 2.0**-60
"""Scale of a tensor that is always zero: a normal float32 whose inverse is one too."""

BINS = 2048
"""Bins of a histogram: eight for every step of the quantized range."""


class _AffineObserver(ObserverBase):  # type: ignore[misc]
    """An observer that ends in a range ``[low, high]``."""

    def __init__(
        self,
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        quant_min: int = 0,
        quant_max: int = 255,
        **_ignored: Any,
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=False)
        self.qscheme = qscheme
        self.quant_min, self.quant_max = quant_min, quant_max
        self.eps = SMALLEST_SCALE

    def range(self) -> tuple[float, float]:
        raise NotImplementedError

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One scale (float32) and one zero point (int64)."""
        low, high = self.range()
        low, high = min(low, 0.0), max(high, 0.0)
        steps = self.quant_max - self.quant_min
        scale = max((high - low) / steps, self.eps)
        zero_point = min(max(round(self.quant_min - low / scale), self.quant_min), self.quant_max)
        return torch.tensor([scale], dtype=torch.float32), torch.tensor([zero_point], dtype=torch.int64)


class MovingAverageObserver(_AffineObserver):
    """Exponential averages of the batches' minima and maxima.

    Args:
        averaging_constant: the weight of the newest batch.
    """

    def __init__(self, averaging_constant: float = 0.01, **options: Any) -> None:
        super().__init__(**options)
        self.averaging_constant = averaging_constant
        self.extremes: tuple[float, float] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.numel():
            new = tuple(float(v) for v in torch.aminmax(x.detach()))
            if self.extremes is None:
                self.extremes = (new[0], new[1])
            else:
                c = self.averaging_constant
                low, high = self.extremes
                self.extremes = (low + c * (new[0] - low), high + c * (new[1] - high))
        return x

    def range(self) -> tuple[float, float]:
        return self.extremes or (0.0, 0.0)


class HistogramObserver(_AffineObserver):
    """A histogram whose range grows by powers of two, so that old counts move into whole new bins."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.reach = 0.0
        self.low, self.high = 0.0, 0.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = x.detach().float().reshape(-1)
        if values.numel() == 0:
            return x
        low, high = (float(v) for v in torch.aminmax(values))
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        if self.reach > 0.0:
            self.counts += torch.histc(values, BINS, -self.reach, self.reach).double()
        return x

    def _grow(self, reach: float) -> None:
        if self.reach == 0.0:
            self.reach = reach
            return
        while self.reach < reach:
            joined = self.counts.reshape(-1, 2).sum(dim=1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = joined
            self.reach *= 2.0

    @property
    def centers(self) -> torch.Tensor:
        width = 2.0 * self.reach / BINS
        return -self.reach + width * (torch.arange(BINS, dtype=torch.float64) + 0.5)


class PercentileObserver(HistogramObserver):
    """The range that holds ``percentile`` percent of the values, as many left out at either end.

    Args:
        percentile: in percent, above 50.
    """

    def __init__(self, percentile: float = 99.99, **options: Any) -> None:
        super().__init__(**options)
        self.percentile = percentile

    def range(self) -> tuple[float, float]:
        total = float(self.counts.sum())
        if total == 0.0:
            return self.low, self.high
        outside = total * (1.0 - self.percentile / 100.0) / 2.0
        cumulative = self.counts.cumsum(0)
        width = 2.0 * self.reach / BINS
        first = int((cumulative <= outside).sum())
        last = int((cumulative < total - outside).sum())
        low = -self.reach + width * first
        high = -self.reach + width * (min(last, BINS - 1) + 1)
        return max(low, self.low), min(high, self.high)


class MSEObserver(HistogramObserver):
    """The range whose quantization has the least mean squared error, clipping and rounding together."""

    STEPS = 64
    """Candidates for each end of the range, from the extreme inwards."""

    def range(self) -> tuple[float, float]:
        if self.reach == 0.0:
            return self.low, self.high
        used = self.counts > 0
        centers, counts = self.centers[used], self.counts[used]
        low, high = self.low, self.high
        # One end after the other, twice: the error is smooth in each.
        for _ in range(2):
            low = self._best(centers, counts, low, high, at_low=True)
            high = self._best(centers, counts, low, high, at_low=False)
        return low, high

    def _best(
        self, centers: torch.Tensor, counts: torch.Tensor, low: float, high: float, *, at_low: bool
    ) -> float:
        extreme = self.low if at_low else self.high
        shares = torch.arange(1, self.STEPS + 1, dtype=torch.float64) / self.STEPS
        candidates = shares * extreme
        lows = candidates if at_low else torch.full_like(candidates, low)
        highs = torch.full_like(candidates, high) if at_low else candidates
        steps = self.quant_max - self.quant_min
        scales = ((highs - lows) / steps).clamp(min=self.eps)
        clipped = torch.minimum(torch.maximum(centers[None, :], lows[:, None]), highs[:, None])
        clipping = ((centers[None, :] - clipped) ** 2 * counts).sum(dim=1)
        # Inside the range the error of rounding is uniform over a step: its variance is scale**2 / 12.
        inside = (clipped == centers[None, :]).double() @ counts
        error = clipping + inside * scales**2 / 12.0
        return float(candidates[int(torch.argmin(error))])


def activation_observer(config: CompileConfig) -> Callable[..., Any]:
    """Constructor of the observer of activations that ``config`` asks for."""
    if config.observer == "moving-average":
        return MovingAverageObserver.with_args(averaging_constant=config.averaging_constant)  # type: ignore[no-any-return]
    if config.observer == "percentile":
        return PercentileObserver.with_args(percentile=config.percentile)  # type: ignore[no-any-return]
    if config.observer == "mse":
        return MSEObserver
    return MinMaxObserver.with_args(eps=SMALLEST_SCALE)  # type: ignore[no-any-return]
