"""Accuracy of a bundle: against labels, and against the float model."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qcompiler import runtime
from qcompiler.driver.data import Array, Batch, Samples, chunks, read_samples
from qcompiler.driver.float_model import FloatModel, load_float_model
from qcompiler.driver.run import keep_valid
from qcompiler.errors import InputError
from qcompiler.report import progress as progress_bar

CLASS_AXIS = 1
"""Axis of the first output along which the largest value is the predicted class."""


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` measured; fractions lie in [0, 1].

    Attributes:
        samples: samples evaluated.
        top1: share of labels that are the bundle's predicted class; None without labels.
        float_top1: the same for the float model; None without labels or without a float model.
        agreement: share of predictions that are the float model's; None without one, or without classes.
        sqnr_db: signal to quantization noise of every float output against the float model's, in decibels;
            infinite where they are equal. Empty without a float model.
    """

    samples: int
    top1: float | None = None
    float_top1: float | None = None
    agreement: float | None = None
    sqnr_db: Mapping[str, float] = field(default_factory=dict)


class Sqnr:
    """Signal to quantization noise ratio, summed over many arrays."""

    def __init__(self) -> None:
        self._signal = self._noise = 0.0

    def add(self, wanted: Array, found: Array) -> None:
        exact = wanted.astype(np.float64)
        self._signal += float(np.square(exact).sum())
        self._noise += float(np.square(found.astype(np.float64) - exact).sum())

    @property
    def decibels(self) -> float:
        """Infinite without noise; minus infinity for noise without a signal."""
        if self._noise == 0.0:
            return math.inf
        return 10 * math.log10(self._signal / self._noise) if self._signal > 0.0 else -math.inf


def evaluate(
    bundle: Path,
    data: Path,
    *,
    model: str | None = None,
    threads: int | None = None,
    require_signature: Path | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Runs a bundle, and the float model if given, on the samples of ``data``.

    Args:
        bundle: the bundle's folder.
        data: ``.npz`` with an array per model input; ``labels``, integers, give top-1.
        model: the float model: a ``.pt2`` archive, an ``.onnx`` file, or ``package.module:function``.
        threads: threads of one run; None for all physical cores.
        require_signature: a public key; the bundle must be signed by its owner.
        limit: evaluate at most this many samples.
        progress: show a progress bar.

    Raises:
        InputError: data and model do not fit each other, or there is nothing to measure: neither labels nor
            a float model.
        QCompilerError: the bundle or the model cannot be loaded.
    """
    compiled = runtime.load(bundle, threads, require_signature=require_signature)
    samples = read_samples(data, compiled.inputs, limit)
    if samples.labels is None and model is None:
        raise InputError(f"data {data} has no array 'labels', and no float model is given: give --model")
    shapes = [spec.shape for spec in compiled.inputs]
    return measure(
        compiled, samples, load_float_model(model, shapes) if model is not None else None, progress=progress
    )


def measure(
    compiled: runtime.Model, samples: Samples, reference: FloatModel | None, *, progress: bool = False
) -> Evaluation:
    """As :func:`evaluate`, of models that are loaded already."""
    names = [spec.name for spec in compiled.outputs]
    ratios = {name: Sqnr() for name in names}
    predicted: list[Array] = []
    wanted: list[Array] = []
    classes = len(compiled.outputs[0].shape) > CLASS_AXIS
    if samples.labels is not None and not classes:
        raise InputError(
            f"output {names[0]!r} has shape {list(compiled.outputs[0].shape)}; labels need a class axis"
        )
    with progress_bar("evaluate", samples.runs, progress) as advance:
        for chunk in chunks(samples.batches()):
            found = [_valid(compiled.run, batch, samples) for batch in chunk]
            exact = [] if reference is None else [_valid(reference, batch, samples) for batch in chunk]
            if classes:
                predicted += [outputs[0].argmax(CLASS_AXIS) for outputs in found]
                wanted += [outputs[0].argmax(CLASS_AXIS) for outputs in exact]
            for outputs, expected in zip(found, exact, strict=reference is not None):
                _check_same(names, outputs, expected)
                for name, output, right in zip(names, outputs, expected, strict=True):
                    ratios[name].add(right, output)
            advance(len(chunk))
    return Evaluation(
        samples.count,
        _share(predicted, [samples.labels]) if samples.labels is not None else None,
        _share(wanted, [samples.labels]) if samples.labels is not None and reference is not None else None,
        _share(predicted, wanted) if classes and reference is not None else None,
        {name: ratio.decibels for name, ratio in ratios.items()} if reference is not None else {},
    )


def _valid(engine: Callable[..., Sequence[Array]], batch: Batch, samples: Samples) -> list[Array]:
    valid, inputs = batch
    return [keep_valid(output, valid, samples) for output in engine(*inputs)]


def _check_same(names: list[str], outputs: list[Array], expected: list[Array]) -> None:
    found, wanted = [o.shape for o in outputs], [o.shape for o in expected]
    if found != wanted:
        raise InputError(
            f"the float model returns outputs of shapes {wanted}, the bundle {found} ({', '.join(names)}); "
            "give the model that the bundle was compiled from"
        )


def _share(found: list[Array], wanted: list[Array]) -> float:
    a, b = np.concatenate(found), np.concatenate(wanted)
    if a.shape != b.shape:
        raise InputError(f"labels have shape {list(b.shape)}; the predicted classes have {list(a.shape)}")
    return float(np.mean(a == b))
