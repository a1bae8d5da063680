"""Samples are cut into runs by the model's batch, and misfits are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.driver.data import CHUNK, chunks, read_arrays, read_samples
from qcompiler.errors import InputError
from qcompiler.runtime import TensorSpec

X = TensorSpec("x", (2, 3), "float32")
MASK = TensorSpec("mask", (2,), "uint8")


def write(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def values(count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(count * 3, dtype=np.float32).reshape(count, 3)


def test_last_run_is_filled_up_with_a_sample(tmp_path: Path) -> None:
    samples = read_samples(write(tmp_path / "d.npz", x=values(5), labels=np.arange(5)), [X])
    runs = list(samples.batches())
    assert (samples.count, samples.runs, samples.batch) == (5, 3, 2)
    assert [valid for valid, _ in runs] == [2, 2, 1]
    np.testing.assert_array_equal(runs[2][1][0], values(5)[[4, 4]])
    assert samples.labels is not None
    np.testing.assert_array_equal(samples.labels, np.arange(5))


def test_limit_cuts_samples_and_labels(tmp_path: Path) -> None:
    samples = read_samples(write(tmp_path / "d.npz", x=values(5), labels=np.arange(5)), [X], limit=3)
    assert samples.count == 3
    assert samples.labels is not None
    assert len(samples.labels) == 3
    assert len(samples.inputs[0]) == 3


def test_single_input_may_have_any_name(tmp_path: Path) -> None:
    samples = read_samples(write(tmp_path / "d.npz", images=values(2), labels=np.zeros(2)), [X])
    np.testing.assert_array_equal(samples.inputs[0], values(2))


def test_inputs_are_taken_by_name(tmp_path: Path) -> None:
    file = write(tmp_path / "d.npz", mask=np.ones(4, np.uint8), x=values(4), other=np.zeros(1))
    samples = read_samples(file, [X, MASK])
    assert [array.dtype.name for array in samples.inputs] == ["float32", "uint8"]


def test_labels_may_be_an_input(tmp_path: Path) -> None:
    spec = TensorSpec("labels", (1, 3), "float32")
    samples = read_samples(write(tmp_path / "d.npz", labels=values(2)), [spec])
    assert samples.labels is None
    np.testing.assert_array_equal(samples.inputs[0], values(2))


def test_model_without_a_common_batch_axis_is_run_once(tmp_path: Path) -> None:
    specs = [X, TensorSpec("b", (7,), "float32")]
    file = write(tmp_path / "d.npz", x=values(2), b=np.zeros(7, np.float32))
    samples = read_samples(file, specs)
    ((valid, inputs),) = samples.batches()
    assert (valid, samples.runs, samples.whole) == (1, 1, True)
    assert [array.shape for array in inputs] == [(2, 3), (7,)]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": values(4)[:, :2]}, r"'x' has shape \[4, 2\]; expected \[samples, 3\]"),
        ({"x": values(4)[0]}, r"'x' has shape \[3\]; expected \[samples, 3\]"),
        ({"x": values(4).astype(np.float64)}, r"dtype float64; expected float32: convert it with .astype"),
        ({"x": values(0)}, "holds no samples"),
        ({"x": values(4), "labels": np.zeros(3)}, r"differ in their number of samples: \[3, 4\]"),
        ({"a": values(4), "b": values(4)}, "no array for input x; it holds a, b; the model takes x"),
        ({}, "no array for input x; it holds nothing"),
    ],
)
def test_misfits_are_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_samples(write(tmp_path / "d.npz", **arrays), [X])


def test_misfits_of_a_model_without_a_batch_axis(tmp_path: Path) -> None:
    specs = [X, TensorSpec("b", (7,), "float32")]
    b = np.zeros(7, np.float32)
    with pytest.raises(InputError, match=r"exactly the shapes x \[2, 3\], b \[7\]"):
        read_samples(write(tmp_path / "d.npz", x=values(3), b=b), specs)
    with pytest.raises(InputError, match="has labels"):
        read_samples(write(tmp_path / "e.npz", x=values(2), b=b, labels=b), specs)


def test_files_that_hold_no_arrays_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.npz"
    text.write_text("not an archive")
    objects = tmp_path / "objects.npz"
    np.savez(objects, x=np.array([{"a": 1}], dtype=object))
    for path, message in (
        (tmp_path / "none.npz", "does not exist"),
        (text, "is no .npz file"),
        (objects, "cannot be read"),
    ):
        with pytest.raises(InputError, match=message):
            read_arrays(path)


def test_chunks_hold_all_runs_in_order() -> None:
    runs = [(i, ()) for i in range(2 * CHUNK + 1)]
    groups = list(chunks(iter(runs)))
    assert [len(group) for group in groups] == [CHUNK, CHUNK, 1]
    assert [run for group in groups for run in group] == runs
