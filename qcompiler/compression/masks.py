"""Weights that are zero and stay zero, through training and quantization.

A weight of zero is the integer zero: quantized weights have no zero point, and folding a batch norm multiplies. So what
is masked here is zero in the compiled library too. No kernel of a CPU target gains from it; the manifest tells the share
of zeros of each layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qcompiler.errors import CompressionError

GROUP, LEFT = 4, 2
"""Of four weights that follow one another along the input channels two are left: the pattern 2:4."""


class Masks:
    """Which weights of a module stay.

    Args:
        module: the module.
        masks: bool tensors of the weights' shapes by parameter name; False is zero.
        skipped: why other weights have no mask, by parameter name.
    """

    def __init__(
        self, module: nn.Module, masks: Mapping[str, torch.Tensor], skipped: Mapping[str, str] | None = None
    ) -> None:
        self.module = module
        self.masks = dict(masks)
        self.skipped = dict(skipped or {})

    @classmethod
    def of_zeros(cls, module: nn.Module) -> Masks:
        """Keeps every weight zero that is zero now, as after ``prepare_qat`` of a module with masks."""
        weights = _weights(module)
        return cls(module, {n: w.detach() != 0 for n, w in weights.items() if not bool(w.detach().all())})

    @property
    def zeros(self) -> float:
        """Share of zeros in the weights that have a mask."""
        count = sum(m.numel() for m in self.masks.values())
        return 1.0 - sum(int(m.sum()) for m in self.masks.values()) / count if count else 0.0

    @torch.no_grad()
    def apply(self) -> None:
        """Set the masked weights to zero, in place."""
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        for name, mask in self.masks.items():
            parameters[name].mul_(mask.to(parameters[name].device))

    def attach(self, optimizer: torch.optim.Optimizer) -> None:
        """Apply the masks after each of the optimizer's steps, whatever its momentum wants."""

        def after_step(_optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            self.apply()

        optimizer.register_step_post_hook(after_step)


def mask_weights(
    model: nn.Module, *, zeros: float | None = None, pattern: str | None = None, keep: tuple[str, ...] = ()
) -> Masks:
    """Set the smallest weights of convolutions and linear layers to zero, in place.

    Args:
        model: the module.
        zeros: share of zeros in all these weights together, in (0, 1); the smallest are taken, wherever they are.
        pattern: ``"2:4"`` instead: the two smaller of four weights along the input channels. A layer whose input
            channels are no multiple of four is skipped, as :attr:`Masks.skipped` says.
        keep: paths of modules whose weights all stay.

    Raises:
        CompressionError: neither or both of ``zeros`` and ``pattern`` are given, or one is not allowed.
    """
    if (zeros is None) == (pattern is None):
        raise CompressionError('give either zeros, a share in (0, 1), or pattern="2:4"')
    if zeros is not None and not 0 < zeros < 1:
        raise CompressionError(f"zeros is {zeros}; it must be above 0 and below 1")
    if pattern not in (None, "2:4"):
        raise CompressionError(f"unknown pattern {pattern!r}; known: 2:4")
    weights = _weights(model)
    if not weights:
        raise CompressionError("the model has no convolution and no linear layer")
    for path in keep:
        if not any(_inside(name, path) for name in weights):
            raise CompressionError(f"keep: no weight is in {path!r}; there are: {', '.join(weights)}")
    skipped = {name: f"{path} is kept" for name in weights for path in keep if _inside(name, path)}
    used = {name: w.detach() for name, w in weights.items() if name not in skipped}
    if zeros is not None:
        masks = Masks(model, _smallest(used, zeros), skipped)
    else:
        narrow = {name: w.shape[1] for name, w in used.items() if w.shape[1] % GROUP}
        skipped |= {name: f"its {n} input channels are no multiple of {GROUP}" for name, n in narrow.items()}
        masks = Masks(model, {n: _two_of_four(w) for n, w in used.items() if n not in narrow}, skipped)
    masks.apply()
    return masks


def _inside(name: str, path: str) -> bool:
    return name.startswith(f"{path}.")


def _weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Weights of layers by name: those of more than one dimension, but for embeddings; shared ones once."""
    return {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.rpartition(".")[2] == "weight"
        and parameter.ndim > 1
        and not isinstance(model.get_submodule(name.rpartition(".")[0]), nn.Embedding)
    }


def _smallest(weights: Mapping[str, torch.Tensor], zeros: float) -> dict[str, torch.Tensor]:
    magnitudes = torch.cat([w.abs().flatten() for w in weights.values()])
    count = round(zeros * magnitudes.numel())
    order = magnitudes.argsort(stable=True)
    flat = torch.ones(magnitudes.numel(), dtype=torch.bool, device=magnitudes.device)
    flat[order[:count]] = False
    parts = torch.split(flat, [w.numel() for w in weights.values()])
    return {name: part.reshape(w.shape) for (name, w), part in zip(weights.items(), parts, strict=True)}


def _two_of_four(weight: torch.Tensor) -> torch.Tensor:
    """Groups lie along the input channels, which are innermost in the matrix product of a convolution."""
    last = weight.movedim(1, -1)
    groups = last.abs().reshape(-1, GROUP)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.topk(LEFT, dim=1).indices, True)
    return mask.reshape(last.shape).movedim(-1, 1).contiguous()
