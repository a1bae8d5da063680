"""What a plan costs in accuracy: simulated by PyTorch, or measured from a bundle's outputs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from qcompiler.config import Precision
from qcompiler.driver.data import Array, Samples
from qcompiler.driver.evaluate import CLASS_AXIS, Sqnr
from qcompiler.quantization.mixed import Batch, LayerSimulation

Criterion = Literal["top-1", "agreement"]
"""A plan's drop: what top-1 accuracy loses against the float model, or how often its class is another."""

SENSITIVITY_SAMPLES = 128
"""Samples that each layer alone is simulated on: its noise is a mean over all of them and all outputs."""


@dataclass(frozen=True)
class Sensitivity:
    """What a layer in one precision, and all others in fp32, does to the model's outputs.

    Attributes:
        noise: energy of the difference to the float outputs, relative to theirs, summed over the outputs.
        drop: as of :class:`Judge`, on the samples that this was measured on; None without classes.
    """

    noise: float
    drop: float | None

    @property
    def sqnr_db(self) -> float:
        return decibels(self.noise)


def decibels(noise: float) -> float:
    """A relative noise as a ratio of signal to noise; infinite without noise."""
    return -10 * math.log10(noise) if noise > 0 else math.inf


class Judge:
    """Compares outputs with those of the float model.

    Attributes:
        criterion: what a drop is; None if the first output has no classes.
        float_top1: top-1 accuracy of the float model; None without labels.
    """

    def __init__(self, simulation: LayerSimulation, samples: Samples) -> None:
        self._samples = samples
        self.batches = batches_of(samples)
        self._exact = [_flat(o, samples) for o in simulation.run({}, self.batches)]
        classes = len(self._exact) > 0 and self._exact[0].ndim > CLASS_AXIS
        self.criterion: Criterion | None = (
            None if not classes else "agreement" if samples.labels is None else "top-1"
        )
        self.float_top1 = None
        if self.criterion == "top-1":
            self._wanted = np.asarray(samples.labels)
            self.float_top1 = float(np.mean(self._classes(self._exact[0]) == self._wanted))
        elif classes:
            self._wanted = self._classes(self._exact[0])

    def drop(self, outputs: Sequence[Array]) -> float | None:
        """What the outputs lose against the float model's, as a fraction of the samples; may be negative.

        Args:
            outputs: of all samples, the first axis being the sample.
        """
        if self.criterion is None:
            return None
        right = float(np.mean(self._classes(outputs[0]) == self._wanted))
        return (self.float_top1 if self.float_top1 is not None else 1.0) - right

    def sqnr_db(self, outputs: Sequence[Array]) -> float:
        ratio = Sqnr()
        for wanted, found in zip(self._exact, outputs, strict=True):
            ratio.add(wanted, found)
        return ratio.decibels

    def simulated(self, simulation: LayerSimulation, layers: Mapping[str, Precision]) -> list[Array]:
        """The outputs of a plan."""
        return [_flat(o, self._samples) for o in simulation.run(layers, self.batches)]

    @staticmethod
    def _classes(logits: Array) -> Array:
        return np.asarray(logits.argmax(CLASS_AXIS))


def sensitivities(
    simulation: LayerSimulation, samples: Samples, precisions: Sequence[Precision] = ("int8",)
) -> dict[tuple[str, Precision], Sensitivity]:
    """For each layer and precision what it alone does, on up to :data:`SENSITIVITY_SAMPLES` samples spread over all.

    Args:
        simulation: the model.
        samples: to measure on.
        precisions: without fp32; those of 16 bits are tried for convolutions and linear layers.
    """
    runs = batches_of(samples)
    count = min(len(runs), max(1, SENSITIVITY_SAMPLES // samples.batch))
    chosen = [k * len(runs) // count for k in range(count)]
    noise: dict[tuple[str, Precision], list[tuple[float, float]]] = {}
    right: dict[tuple[str, Precision], list[float]] = {}
    for name, precision, first, found, exact in simulation.alone([runs[k] for k in chosen], precisions):
        key = name, precision
        energies = noise.setdefault(key, [(0.0, 0.0)] * len(exact))
        for k, (one, other) in enumerate(zip(found, exact, strict=True)):
            difference = float((one - other).double().square().sum())
            signal = float(other.double().square().sum())
            energies[k] = (energies[k][0] + difference, energies[k][1] + signal)
        part = chosen[first : first + len(exact[0])]
        right.setdefault(key, []).extend(_rights(found[0], exact[0], part, samples))
    return {
        key: Sensitivity(
            sum(d / s if s else d for d, s in energies),
            0.0 - float(np.mean(right[key])) if right[key] else None,
        )
        for key, energies in noise.items()
    }


def _rights(found: torch.Tensor, exact: torch.Tensor, runs: Sequence[int], samples: Samples) -> list[float]:
    """For each sample of some runs: 1 where it became right, -1 where it became wrong, else 0."""
    if exact.dim() <= 1 + CLASS_AXIS or samples.whole:
        return []
    one, other = (t.argmax(1 + CLASS_AXIS).numpy() for t in (found, exact))
    if samples.labels is None:
        return list(-(one != other).astype(float).reshape(-1))
    index = np.minimum(
        np.add.outer(np.asarray(runs) * samples.batch, np.arange(samples.batch)), samples.count - 1
    )
    labels = np.asarray(samples.labels)[index]
    return list(((one == labels).astype(float) - (other == labels)).reshape(-1))


def batches_of(samples: Samples) -> list[Batch]:
    return [tuple(torch.from_numpy(a) for a in arrays) for _, arrays in samples.batches()]


def _flat(outputs: torch.Tensor, samples: Samples) -> Array:
    """Outputs of runs, [runs, ...], as outputs of samples, [samples, ...], where they have a batch axis."""
    array: Array = outputs.numpy()
    if samples.whole:
        return np.asarray(array[0])
    if array.ndim < 2 or array.shape[1] != samples.batch:
        return array
    joined: Array = array.reshape(-1, *array.shape[2:])[: samples.count]
    return joined
