"""How the ranges of activations are found.

Every observer gives a range that includes zero, as one scale and zero point for the quantized range
``[quant_min, quant_max]``: ``scale = (high - low) / (quant_max - quant_min)``,
``zero_point = rne(quant_min - low / scale)``. With the scheme ``per_tensor_symmetric`` the zero point is the middle, 128 of
[0, 255], and the scale ``max(-low, high) / 127``. Memory does not grow with the number of batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torchao.quantization.pt2e.observer import ObserverBase

from qcompiler.config import CompileConfig
from qcompiler.quantization import ranges
from qcompiler.quantization.histogram import SMALLEST, Histogram

SMALLEST_SCALE = SMALLEST
"""Scale of a tensor that is always zero: a normal float32 whose inverse is one too."""


class AffineObserver(ObserverBase):  # type: ignore[misc]
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
        return self.qparams_of(low, high)

    def qparams_of(self, low: float, high: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and zero point of a range, which is widened to include zero."""
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


class MinMaxObserver(AffineObserver):
    """The extremes of everything seen."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.low, self.high = 0.0, 0.0

    def observe(self, x: torch.Tensor, low: float, high: float) -> None:
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float]:
        return self.low, self.high


class MovingAverageObserver(AffineObserver):
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


class HistogramObserver(AffineObserver):
    """A range that follows from a histogram of all values."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.histogram = Histogram()
        self._found: tuple[float, float] | None = None

    def observe(self, x: torch.Tensor, low: float, high: float) -> None:
        self.histogram.add(x, low, high)
        self._found = None

    def range(self) -> tuple[float, float]:
        # Asked for often after the last observation, and not quick.
        if self._found is None:
            self._found = self.find()
        return self._found

    def find(self) -> tuple[float, float]:
        """The range of the histogram."""
        raise NotImplementedError


class PercentileObserver(HistogramObserver):
    """The range that holds ``percentile`` percent of the values, as many left out at either end.

    Args:
        percentile: in percent, above 50.
    """

    def __init__(self, percentile: float = 99.99, **options: Any) -> None:
        super().__init__(**options)
        self.percentile = percentile

    def find(self) -> tuple[float, float]:
        return ranges.percentile(self.histogram, self.percentile)


class MSEObserver(HistogramObserver):
    """The range whose quantization has the least mean squared error, clipping and rounding together."""

    def find(self) -> tuple[float, float]:
        return ranges.least_squares(self.histogram, self.quant_max - self.quant_min)


class EntropyObserver(HistogramObserver):
    """The range whose quantization changes the distribution of the values least, by Kullback and Leibler."""

    def find(self) -> tuple[float, float]:
        return ranges.entropy(self.histogram, self.quant_max - self.quant_min)


class AutoObserver(HistogramObserver):
    """The ranges that every method finds, to choose from.

    Attributes:
        choice: the method whose range it gives, ``minmax`` before one is chosen.

    Args:
        percentile: as of :class:`PercentileObserver`.
        averaging_constant: as of :class:`MovingAverageObserver`.
    """

    def __init__(self, percentile: float = 99.99, averaging_constant: float = 0.01, **options: Any) -> None:
        super().__init__(**options)
        self.percentile = percentile
        self.choice = "minmax"
        self._average = MovingAverageObserver(averaging_constant, **options)
        self._candidates: dict[str, tuple[float, float]] | None = None

    def observe(self, x: torch.Tensor, low: float, high: float) -> None:
        super().observe(x, low, high)
        self._average.observe(x, low, high)
        self._candidates = None

    def candidates(self) -> dict[str, tuple[float, float]]:
        """Each method's range."""
        if self._candidates is None:
            steps = self.quant_max - self.quant_min
            self._candidates = {
                "minmax": (self.histogram.low, self.histogram.high),
                "moving-average": self._average.range(),
                "percentile": ranges.percentile(self.histogram, self.percentile),
                "mse": ranges.least_squares(self.histogram, steps),
                "entropy": ranges.entropy(self.histogram, steps),
            }
        return self._candidates

    def choose(self, method: str) -> None:
        """Gives the range of ``method`` from now on."""
        self.choice = method
        self._found = None

    def find(self) -> tuple[float, float]:
        return self.candidates()[self.choice]


def activation_observer(config: CompileConfig) -> Callable[..., Any]:
    """Constructor of the observer of activations that ``config`` asks for."""
    percentile, average = {"percentile": config.percentile}, {"averaging_constant": config.averaging_constant}
    constructors: dict[str, Callable[..., Any]] = {
        "minmax": MinMaxObserver,
        "moving-average": MovingAverageObserver.with_args(**average),
        "percentile": PercentileObserver.with_args(**percentile),
        "mse": MSEObserver,
        "entropy": EntropyObserver,
        "auto": AutoObserver.with_args(**percentile, **average),
    }
    return constructors[config.methods.calibration_method]
