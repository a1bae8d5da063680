"""The observer of weights: symmetric, one scale an output channel."""

from __future__ import annotations

from typing import Any

import torch
from torchao.quantization.pt2e.observer import PerChannelMinMaxObserver

from qcompiler.quantization.observers import SMALLEST_SCALE

SMALLEST_PRODUCT = 2.0**-100
"""Smallest product of a layer's input scale and weight scale: normal in float32, with room for division."""

BIAS_LIMIT = 2.0**30
"""Bound of a bias in units of the accumulator: half of the int32 range, the other half is left to the sum."""


def smallest_scales(input_scale: torch.Tensor, bias: torch.Tensor | None, channels: int) -> torch.Tensor:
    """The smallest weight scales with which a layer's accumulator can hold its bias.

    A dead channel of a pruned or batch-normalized layer has weights of next to nothing beside a plain bias; at its own
    scale the bias would not fit. Beside an input that is always zero nothing would.

    Args:
        input_scale: scale of the layer's quantized input, one value.
        bias: float32, one value an output channel, or None.
        channels: the number of output channels.

    Returns:
        float32, one value an output channel.
    """
    scale = input_scale.detach().double().reshape(1)
    floor = (SMALLEST_PRODUCT / scale).expand(channels)
    if bias is not None:
        floor = torch.maximum(floor, bias.detach().abs().double() / (scale * BIAS_LIMIT))
    return floor.float()


class PerChannelWeightObserver(PerChannelMinMaxObserver):  # type: ignore[misc]
    """Scales from each channel's largest magnitude, but large enough for the layer's bias to fit in int32.

    The name holds ``PerChannel``, by which torchao tells that an observer takes ``ch_axis``.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.pop("is_dynamic", None)
        self.floor: torch.Tensor
        super().__init__(**{"eps": SMALLEST_SCALE, **kwargs})
        self.register_buffer("floor", torch.tensor([]))

    def fit(self, input_scale: float, bias: torch.Tensor | None) -> None:
        """Raise the scales to :func:`smallest_scales`; of several layers with these weights, to the largest."""
        floor = smallest_scales(torch.tensor(input_scale), bias, len(self.min_val))
        self.floor = torch.maximum(self.floor, floor) if self.floor.numel() else floor

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Scales float32 and zero points int64 (all 0), one an output channel."""
        scale, zero_point = super().calculate_qparams()
        if self.floor.numel():
            scale = torch.maximum(scale, self.floor)
        return scale, zero_point
