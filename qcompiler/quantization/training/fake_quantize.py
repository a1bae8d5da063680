"""Activations in training: rounded to the steps of 8-bit integers, and kept as float32.

With scale ``s`` and zero point ``z`` a value becomes ``s * (clip(rne(x * f32(1 / s)) + z, lo, hi) - z)``, which is what
``qc.quantize`` and ``qc.dequantize`` compute. Its gradient is passed on within the range, and is zero outside
(straight-through estimator, Bengio et al. 2013).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torchao.quantization.pt2e.observer import ObserverBase

from qcompiler.errors import QuantizationError
from qcompiler.quantization.observers import SMALLEST_SCALE

AVERAGING = 0.01
"""Weight of the newest batch in a tracked range."""


class FakeQuantize(ObserverBase):  # type: ignore[misc]
    """Rounds a tensor to one scale and zero point, and finds them.

    The range follows the moving averages of each training batch's extremes until it is frozen. With a learned scale
    the first batch gives the range, and from then on the scale is a parameter (LSQ, Esser et al. 2020) and the zero
    point stays.

    Args:
        learned: whether the scale is a parameter.
        observer: constructor of the observer that calibration data is shown to.

    Attributes:
        place: what is quantized here, for messages.
        scale: float32, one value; a parameter if it is learned.
        zero_point: int32, one value.
        seen: bool, one value: whether a range is known.
        tracking: whether training batches move the range.
    """

    def __init__(
        self,
        *,
        learned: bool,
        observer: Callable[..., Any],
        dtype: torch.dtype = torch.uint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        quant_min: int = 0,
        quant_max: int = 255,
        **_ignored: Any,
    ) -> None:
        super().__init__(dtype=dtype, is_dynamic=False)
        self.qscheme = qscheme
        self.quant_min, self.quant_max = quant_min, quant_max
        self.learned = learned
        self.tracking = True
        self.place = "a tensor"
        self.calibrating = False
        self.observer = observer(
            dtype=dtype, qscheme=qscheme, quant_min=quant_min, quant_max=quant_max, is_dynamic=False
        )
        self.low: torch.Tensor
        self.high: torch.Tensor
        self.zero_point: torch.Tensor
        self.seen: torch.Tensor
        self.register_buffer("low", torch.zeros(1, dtype=torch.float64))
        self.register_buffer("high", torch.zeros(1, dtype=torch.float64))
        self.scale: torch.Tensor
        scale = torch.ones(1)
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(1, dtype=torch.int32))
        self.register_buffer("seen", torch.zeros(1, dtype=torch.bool))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``, float32 of any shape, rounded.

        Raises:
            QuantizationError: no range is known yet, or the scale is not a positive number any more.
        """
        if self.calibrating:
            self.observer(x)
            return x
        if self.training and self.tracking:
            self._track(x.detach())
        if not self.seen:
            raise QuantizationError(
                f"the range of {self.place} is not known yet; train a batch first, or give prepare_qat calibration data"
            )
        low, high = self.quant_min, self.quant_max
        if self.learned and self.training:
            # LSQ's scale of the gradient; the number of values is that of one sample.
            factor = 1.0 / math.sqrt(max(x[:1].numel(), 1) * high)
            zero = self.zero_point.to(torch.float32)
            return torch._fake_quantize_learnable_per_tensor_affine(
                x, self.positive_scale(), zero, low, high, factor
            )
        return torch.fake_quantize_per_tensor_affine(
            x, self.positive_scale().detach(), self.zero_point, low, high
        )

    def positive_scale(self) -> torch.Tensor:
        """The scale as it is used, float32, one value: an optimizer may have stepped over zero."""
        return self.scale.abs().clamp(min=SMALLEST_SCALE) if self.learned else self.scale

    def _track(self, x: torch.Tensor) -> None:
        if self.learned and bool(self.seen):
            return
        low, high = (v.double().reshape(1) for v in torch.aminmax(x))
        if bool(self.seen):
            low = self.low + AVERAGING * (low - self.low)
            high = self.high + AVERAGING * (high - self.high)
        self.set_range(low, high)

    @torch.no_grad()
    def set_range(self, low: torch.Tensor, high: torch.Tensor) -> None:
        """Take the range ``[low, high]``, widened to include zero; float64, one value each.

        Raises:
            QuantizationError: it is not finite.
        """
        if not bool(low.isfinite() & high.isfinite()):
            raise QuantizationError(
                f"{self.place} takes values that are NaN or infinite in training; check the data, or lower the "
                "learning rate"
            )
        self.low.copy_(low)
        self.high.copy_(high)
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        scale = ((high - low) / (self.quant_max - self.quant_min)).clamp(min=SMALLEST_SCALE)
        self.scale.copy_(scale)
        zero_point = torch.round(self.quant_min - low / scale)
        self.zero_point.copy_(zero_point.clamp(self.quant_min, self.quant_max))
        self.seen.fill_(True)

    def end_calibration(self) -> None:
        """Take the range that the observer found."""
        self.calibrating = False
        scale, zero_point = (v.double() for v in self.observer.calculate_qparams())
        self.set_range((self.quant_min - zero_point) * scale, (self.quant_max - zero_point) * scale)
        # The detour over the range may have moved the last digit.
        with torch.no_grad():
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float32) and zero point (int64), one value each."""
        return self.positive_scale().detach(), self.zero_point.long()
