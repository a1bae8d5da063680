"""Convolutions and linear layers in training: weights rounded as the compiled layer's are, batch norms folded.

While a batch norm learns its statistics, a layer computes with its quantized weights unfolded again, and the batch
norm follows as it always did::

    y = batch_norm(x * (round(w g) / g) + b)       g = gamma / sqrt(running variance + epsilon)

In evaluation mode, and in training once the statistics are frozen, it computes what the compiled layer does::

    y = x * round(w g) + round(beta + (b - running mean) g)

where weights are rounded to 8 bits, one scale an output channel, and biases to whole units of the accumulator. Both
are the same function when the batch's statistics are the running ones (Krishnamoorthi 2018, section 3.2.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from qcompiler.quantization.training.fake_quantize import FakeQuantize
from qcompiler.quantization.weights import smallest_scales

Norm = nn.modules.batchnorm._BatchNorm

SMALLEST_LEARNED_SCALE = 2.0**-40
"""Scales below belong to channels of no weight, from which there is nothing to learn."""


class QuantizedWeights(nn.Module):
    """Rounds weights to 8 bits, symmetric, one scale an output channel.

    The scale is the channel's largest magnitude divided by the largest integer. A learned scale is a multiple of
    that, so that it keeps its place when a batch norm that is folded into the weights moves.

    Args:
        channels: the number of output channels.
        weight_range: smallest and largest integer.
        source: the fake quantization of the layer's input.
        learned: whether a multiple of the scale is a parameter.
    """

    def __init__(
        self, channels: int, weight_range: tuple[int, int], source: FakeQuantize, learned: bool
    ) -> None:
        super().__init__()
        self.weight_range = weight_range
        self._source = (source,)  # in a tuple it is no submodule: it is one of the whole network
        self.multiple: nn.Parameter | None
        self.register_parameter("multiple", nn.Parameter(torch.ones(channels)) if learned else None)

    def scales(self, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Scales of weights [O, ...] beside a bias [O]: float32 [O]; a gradient reaches only the multiples."""
        low, high = self.weight_range
        largest = weight.detach().abs().reshape(len(weight), -1).amax(1)
        scales = largest / (float(high - low) / 2)
        if self.multiple is not None:
            scales = scales * _as_of_a_scale(self.multiple, scales).abs()
        return torch.maximum(scales, smallest_scales(self.input_scale(), bias, len(weight)))

    def input_scale(self) -> torch.Tensor:
        return self._source[0].positive_scale()

    def forward(self, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Rounded weights, float32; ``bias`` is what the accumulator has to hold besides."""
        scales = self.scales(weight, bias)
        if self.multiple is None or not self.training:
            zeros = torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
            return torch.fake_quantize_per_channel_affine(
                weight, scales.detach(), zeros, 0, *self.weight_range
            )
        factor = 1.0 / math.sqrt(weight[0].numel() * self.weight_range[1])
        return torch._fake_quantize_learnable_per_channel_affine(
            weight, scales, torch.zeros_like(scales), 0, *self.weight_range, factor
        )

    def round_bias(self, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """The bias in whole units of the accumulator, float32; its gradient is passed on."""
        unit = (self.input_scale().double() * self.scales(weight, bias).double()).detach()
        exact = bias.detach().double()
        return bias + (torch.round(exact / unit) * unit - exact).float()


class QuantizedLayer(nn.Module):
    """A convolution or linear layer, and the batch norm behind it if there is one.

    Args:
        operator: the layer's operator of aten.
        rest: its arguments after input, weight and bias.
        weight: [O, ...], trained if it is a parameter.
        bias: [O], or None.
        norm: the batch norm behind it, or None.
        weights: how weights are rounded; None for a layer that stays in float.
    """

    def __init__(
        self,
        operator: Callable[..., Any],
        rest: tuple[Any, ...],
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        norm: Norm | None,
        weights: QuantizedWeights | None,
    ) -> None:
        super().__init__()
        self.operator, self.rest = operator, rest
        self.weight: torch.Tensor
        self.bias: torch.Tensor | None
        _hold(self, "weight", weight)
        _hold(self, "bias", bias)
        self.norm = norm
        self.weights = weights

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The layer's result, with the batch norm's."""
        weight, bias = self.folded()
        if self.norm is not None and self.norm.training:
            return self._with_batch_statistics(x, weight, bias, self.norm)
        if self.weights is not None:
            rounded = None if bias is None else self.weights.round_bias(weight, bias)
            weight, bias = self.weights(weight, bias), rounded
        result = self.operator(x, weight, bias, *self.rest)
        assert isinstance(result, torch.Tensor)
        return result

    def folded(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias with the batch norm's running statistics folded in, float32, in double precision."""
        if self.norm is None:
            return self.weight, self.bias
        gain, norm = self._gain(self.norm), self.norm
        assert norm.running_mean is not None
        weight = self.weight.double() * _along(gain, self.weight)
        bias = -norm.running_mean.double() * gain
        if self.bias is not None:
            bias = bias + self.bias.double() * gain
        if norm.bias is not None:
            bias = bias + norm.bias.double()
        return weight.float(), bias.float()

    def _gain(self, norm: Norm) -> torch.Tensor:
        assert norm.running_var is not None
        gain = torch.rsqrt(norm.running_var.double() + norm.eps)
        return gain if norm.weight is None else gain * norm.weight.double()

    def _with_batch_statistics(
        self, x: torch.Tensor, folded: torch.Tensor, bias: torch.Tensor | None, norm: Norm
    ) -> torch.Tensor:
        weight = self.weight
        if self.weights is not None:
            gain = _along(self._gain(norm).detach().float(), weight)
            # A channel that the batch norm multiplies by nothing has no quantized weights to go back from.
            alive = gain.abs() > torch.finfo(torch.float32).tiny
            gain = torch.where(alive, gain, 1.0)
            rounded = self.weights(weight * gain, None if bias is None else bias.detach())
            weight = torch.where(alive, rounded / gain, weight)
        result = self.operator(x, weight, self.bias, *self.rest)
        assert isinstance(result, torch.Tensor)
        normalized = F.batch_norm(
            result,
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            True,
            norm.momentum or 0.0,
            norm.eps,
        )
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        return normalized


def _as_of_a_scale(multiple: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The multiples, with a gradient by which a step of descent moves them as far as it would move the scales.

    For s = c m a step of descent on s changes it by dL/ds, that is m by (dL/dm) / c**2.
    """
    alive = scales > SMALLEST_LEARNED_SCALE
    factor = torch.where(alive, torch.where(alive, scales, 1.0) ** -2, 0.0)
    return multiple.detach() + (multiple - multiple.detach()) * factor


def _hold(module: nn.Module, name: str, tensor: torch.Tensor | None) -> None:
    if isinstance(tensor, nn.Parameter) or tensor is None:
        module.register_parameter(name, tensor)
    else:
        module.register_buffer(name, tensor)


def _along(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Values of output channels, shaped to multiply a weight."""
    return values.reshape(-1, *[1] * (weight.dim() - 1))
