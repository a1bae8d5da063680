"""Accuracy, agreement and noise are those of a hand-made model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.driver.data import Samples
from qcompiler.driver.evaluate import Sqnr, evaluate, measure
from qcompiler.errors import InputError
from qcompiler.runtime import TensorSpec

LOGITS = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], np.float32)


class Identity:
    """Stands in for a loaded model: gives its input back, two samples a run."""

    outputs = (TensorSpec("y", (2, 2), "float32"),)

    def run(self, *inputs: Any) -> tuple[Any, ...]:
        return inputs


def samples(labels: Any = None) -> Samples:
    return Samples((LOGITS,), None if labels is None else np.array(labels), 2, len(LOGITS))


def test_top1_counts_every_sample_once() -> None:
    result = measure(Identity(), samples([0, 1, 1, 1, 1]), None)  # type: ignore[arg-type]
    assert result.top1 == pytest.approx(4 / 5)
    assert (result.samples, result.float_top1, result.agreement, result.sqnr_db) == (5, None, None, {})


def test_float_model_gives_agreement_and_noise() -> None:
    def swapped(x: Any) -> list[Any]:
        return [np.where(x[:, :1] == 1, x[:, ::-1], x)]  # turns class 0 into class 1

    result = measure(Identity(), samples([1, 1, 1, 1, 1]), swapped)  # type: ignore[arg-type]
    assert (result.top1, result.float_top1, result.agreement) == (3 / 5, 1.0, 3 / 5)
    # The signal is 5; two samples differ by 1 in two places each.
    assert result.sqnr_db["y"] == pytest.approx(10 * math.log10(5 / 4))


def test_equal_outputs_are_without_noise() -> None:
    result = measure(Identity(), samples(), lambda x: [x])  # type: ignore[arg-type]
    assert (result.agreement, result.sqnr_db) == (1.0, {"y": math.inf})


def test_another_models_outputs_are_refused() -> None:
    with pytest.raises(InputError, match="give the model that the bundle was compiled from"):
        measure(Identity(), samples(), lambda x: [x[:, :1]])  # type: ignore[arg-type]


def test_labels_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"labels have shape \[5, 2\]; the predicted classes have \[5\]"):
        measure(Identity(), samples(LOGITS), None)  # type: ignore[arg-type]


def test_noise_without_signal() -> None:
    ratio = Sqnr()
    ratio.add(np.zeros(2, np.uint8), np.array([255, 0], np.uint8))
    assert ratio.decibels == -math.inf


def test_nothing_to_measure_is_refused(small_bundle_path: Path, tmp_path: Path) -> None:
    data = tmp_path / "d.npz"
    np.savez(data, x=np.zeros((4, 32), np.float32), b=np.zeros(64, np.float32))
    with pytest.raises(InputError, match="no array 'labels', and no float model"):
        evaluate(small_bundle_path, data)
