"""How the ranges of activations are found.

Every observer gives a range that includes zero, as one scale and zero point for the quantized range
``[quant_min, quant_max]``: ``scale = (high - low) / (quant_max - quant_min)``,
``zero_point = rne(quant_min - low / scale)``. With the scheme ``per_tensor_symmetric`` the zero point is the middle, 128 of
[0, 255], and the scale ``max(-low, high) / 127``. Memory does not grow with the number of batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torchao.quantization.pt2e.observer import ObserverBase

from qcompiler.config import CompileConfig

SMALLEST_SCALE = 2.0**-60
"""Scale of a tensor that is always zero: a normal float32 whose inverse is one too."""

BINS = 8192
"""Bins of a histogram. A tensor without negative values fills at least a quarter of them: half of the bins
are for each sign, and the reach is a power of two. That leaves eight bins for each of 256 steps."""


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Takes note of the values of ``x``, float32 of any shape, and returns it."""
        if x.numel():
            low, high = (float(v) for v in torch.aminmax(x.detach()))
            self.observe(x.detach(), low, high)
        return x

    def observe(self, x: torch.Tensor, low: float, high: float) -> None:
        """Takes note of ``x``, which is not empty and has the extremes ``low`` and ``high``."""
        raise NotImplementedError

    def range(self) -> tuple[float, float]:
        """The range of what was observed; ``(0, 0)`` for nothing."""
        raise NotImplementedError

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """One scale (float32, positive and finite) and one zero point (int64)."""
        low, high = self.range()
        low, high = min(low, 0.0), max(high, 0.0)
        if self.qscheme == torch.per_tensor_symmetric:
            # The middle is nearer to the upper end by one, so that one decides what the range must hold.
            middle = (self.quant_min + self.quant_max + 1) // 2
            scale = max(max(-low, high) / (self.quant_max - middle), SMALLEST_SCALE)
            return torch.tensor([scale], dtype=torch.float32), torch.tensor([middle], dtype=torch.int64)
        # In double precision: the difference of two float32 numbers may be none.
        scale = max((high - low) / (self.quant_max - self.quant_min), SMALLEST_SCALE)
        zero_point = min(max(round(self.quant_min - low / scale), self.quant_min), self.quant_max)
        return torch.tensor([scale], dtype=torch.float32), torch.tensor([zero_point], dtype=torch.int64)


class MinMaxObserver(_AffineObserver):
    """The extremes of everything seen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.low, self.high = 0.0, 0.0

    def observe(self, x: torch.Tensor, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float]:
        return self.low, self.high


class MovingAverageObserver(_AffineObserver):
    """Exponential averages of the batches' minima and maxima.

    Args:
        averaging_constant: the weight of the newest batch.
    """

    def __init__(self, averaging_constant: float = 0.01, **options: Any) -> None:
        super().__init__(**options)
        self.averaging_constant = averaging_constant
        self.extremes: tuple[float, float] | None = None

    def observe(self, x: torch.Tensor, low: float, high: float) -> None:
        old_low, old_high = self.extremes or (low, high)
        c = self.averaging_constant
        self.extremes = (old_low + c * (low - old_low), old_high + c * (high - old_high))

    def range(self) -> tuple[float, float]:
        return self.extremes or (0.0, 0.0)


class HistogramObserver(_AffineObserver):
    """A histogram over ``[-reach, reach]``.

    The reach is a power of two and grows by doubling, by which old counts move into whole new bins. So the
    counts do not depend on how the data is cut into batches, nor on their order.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counts = torch.zeros(BINS, dtype=torch.float64)
        self.zeros = 0
        self.reach = SMALLEST_SCALE
        self.low, self.high = 0.0, 0.0

    def observe(self, x: torch.Tensor, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow(max(-low, high))
        # Scaled to [-1, 1] first: the width 2 * reach need not be a float32.
        self.counts += torch.histc(x.float() * (1.0 / self.reach), BINS, -1.0, 1.0).double()
        self.zeros += x.numel() - int(x.count_nonzero())

    def _grow(self, extreme: float) -> None:
        if not self.counts.any():
            self.reach = max(self.reach, 2.0 ** math.ceil(math.log2(extreme)) if extreme else 0.0)
        while self.reach < extreme:
            joined = self.counts.reshape(-1, 2).sum(dim=1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = joined
            self.reach *= 2.0

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2.0 * self.reach / BINS


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
        first = int((cumulative <= outside).sum())
        last = int((cumulative < total - outside).sum())
        low = -self.reach + self.width * first
        high = -self.reach + self.width * (min(last, BINS - 1) + 1)
        return max(low, self.low), min(high, self.high)


class MSEObserver(HistogramObserver):
    """The range whose quantization has the least mean squared error, clipping and rounding together."""

    STEPS = 64
    """Candidates for each end of the range, from the extreme inwards."""

    def range(self) -> tuple[float, float]:
        counts = self.counts.clone()
        # Zero has an exact quantized value in every range, and after a relu half of all values are zero.
        counts[BINS // 2] -= self.zeros
        used = counts > 0
        counts = counts[used]
        centers = (-self.reach + self.width * (torch.arange(BINS, dtype=torch.float64) + 0.5))[used]
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
        shares = torch.arange(self.STEPS, 0, -1, dtype=torch.float64) / self.STEPS
        candidates = shares * extreme
        lows = candidates if at_low else torch.full_like(candidates, low)
        highs = torch.full_like(candidates, high) if at_low else candidates
        scales = ((highs - lows) / (self.quant_max - self.quant_min)).clamp(min=SMALLEST_SCALE)
        clipped = torch.minimum(torch.maximum(centers[None, :], lows[:, None]), highs[:, None])
        clipping = ((centers[None, :] - clipped) ** 2 * counts).sum(dim=1)
        # A step wider than a bin rounds all of the bin to the same number, small values to zero. Of a finer
        # step the error is uniform over the step: its variance is scale**2 / 12.
        steps = scales[:, None]
        at_center = (torch.round(clipped / steps) * steps - clipped) ** 2
        rounding = torch.where(steps > self.width, at_center, steps**2 / 12.0)
        error = clipping + ((clipped == centers[None, :]) * rounding) @ counts
        return float(candidates[int(torch.argmin(error))])


def activation_observer(config: CompileConfig) -> Callable[..., Any]:
    """Constructor of the observer of activations that ``config`` asks for."""
    constructors: dict[str, Callable[..., Any]] = {
        "minmax": MinMaxObserver,
        "moving-average": MovingAverageObserver.with_args(averaging_constant=config.averaging_constant),
        "percentile": PercentileObserver.with_args(percentile=config.percentile),
        "mse": MSEObserver,
    }
    return constructors[config.observer]
