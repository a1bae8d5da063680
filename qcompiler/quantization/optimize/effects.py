"""What an optimization of a quantized model gained, in the error of its outputs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from qcompiler.quantization.simulation import Simulation, spread

SAMPLES = 64
"""Samples that an effect is measured on."""

HELD_OUT = 4
"""Of so many batches one is held out: what was fitted to the others is measured on it."""

Batch = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Effect:
    """An optimization and its effect.

    Attributes:
        name: the optimization, by its option's name.
        before_db: signal to quantization noise of the model's outputs without it, in decibels, on calibration samples
            that it was not fitted to.
        after_db: the same with it.
        kept: whether it is in the model; one that makes the outputs worse is not.
        changed: how many layers or tensors it changed.
        refused: why it left others alone, with their number: ``3 times: ...``.
    """

    name: str
    before_db: float
    after_db: float
    kept: bool
    changed: int
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Change:
    """What an optimization did.

    Attributes:
        changed: how many layers or tensors.
        refused: for each that it left alone, the reason.
    """

    changed: int
    refused: tuple[str, ...] = ()

    def summary(self) -> tuple[str, ...]:
        """The reasons, each once with its number."""
        return tuple(
            f"{n} times: {reason}" if n > 1 else reason for reason, n in Counter(self.refused).items()
        )


def divide(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Batches to fit to, and others to measure on; with fewer than ``HELD_OUT`` batches both are all."""
    if len(batches) < HELD_OUT:
        return list(batches), list(batches)
    fitted = [b for k, b in enumerate(batches) if k % HELD_OUT]
    return fitted, list(batches[::HELD_OUT])


class Judge:
    """Measures how far a quantized graph's outputs are from the float model's."""

    def __init__(self, batches: Sequence[Batch]) -> None:
        self.batches = spread(batches, SAMPLES)
        self.expected: list[tuple[torch.Tensor, ...]] = []

    def learn(self, simulation: Simulation) -> None:
        """Takes a graph's float outputs for the right ones."""
        self.expected = [simulation.outputs(simulation.run(batch, ())) for batch in self.batches]

    def sqnr(self, simulation: Simulation) -> float:
        """Signal to quantization noise of all outputs, in decibels; of several, from the mean of their ratios."""
        found = (simulation.outputs(simulation.run(b, simulation.quantizers)) for b in self.batches)
        return sqnr(zip(self.expected, found, strict=True))


def sqnr(pairs: Iterable[tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]]) -> float:
    """Signal to quantization noise in decibels, infinite without noise.

    Args:
        pairs: for each batch the right outputs and those found. Of several outputs each counts the same.
    """
    signals: dict[int, float] = {}
    noises: dict[int, float] = {}
    for expected, found in pairs:
        for k, (right, value) in enumerate(zip(expected, found, strict=True)):
            exact = right.double()
            signals[k] = signals.get(k, 0.0) + float(exact.square().sum())
            noises[k] = noises.get(k, 0.0) + float((value.double() - exact).square().sum())
    return decibels([noises[k] / signals[k] for k in signals if signals[k] > 0.0])


def decibels(ratios: Sequence[float]) -> float:
    """The mean of ratios of noise to signal as a ratio of signal to noise in decibels."""
    mean = math.fsum(ratios) / max(len(ratios), 1)
    return math.inf if mean == 0.0 else -10.0 * math.log10(mean)
