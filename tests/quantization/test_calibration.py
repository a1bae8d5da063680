"""Calibration data: what is accepted and how it is cut, and what is refused with which words."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.errors import CalibrationError
from qcompiler.quantization.calibration import Batch, from_iterable, load_npz, track


@dataclass(frozen=True)
class Info:
    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32


ONE = [Info("x", (2, 3))]
TWO = [Info("x", (2, 3)), Info("ids", (2,), torch.int64)]
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)


def shapes(batches: list[Batch]) -> list[list[tuple[int, ...]]]:
    return [[tuple(t.shape) for t in batch] for batch in batches]


@pytest.fixture
def saved(tmp_path: Path) -> Any:
    def save(**arrays: Any) -> Path:
        np.savez(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return save


def test_npz_is_cut_into_batches_by_name(saved) -> None:
    batches = load_npz(saved(ids=np.arange(4), other=np.zeros(1), x=ROWS), TWO)
    assert shapes(batches) == [[(2, 3), (2,)]] * 2
    assert torch.equal(batches[1][0], torch.from_numpy(ROWS[2:]))
    assert batches[1][1].tolist() == [2, 3]


def test_only_array_besides_the_labels_is_the_only_input(saved) -> None:
    assert len(load_npz(saved(images=ROWS, labels=np.zeros(4)), ONE)) == 2


def test_several_arrays_without_the_name_are_an_error_with_the_names(saved) -> None:
    with pytest.raises(CalibrationError, match=r"no array 'x'; it has: a, b; the model's inputs are: x"):
        load_npz(saved(a=ROWS, b=ROWS), ONE)


def test_samples_beyond_the_last_whole_batch_are_left_out_and_said(saved, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        batches = load_npz(saved(x=np.zeros((5, 3), np.float32)), ONE)
    assert shapes(batches) == [[(2, 3)]] * 2
    assert "1 of 5 calibration samples are left out" in caplog.text


def test_fewer_samples_than_a_batch_are_an_error(saved) -> None:
    with pytest.raises(CalibrationError, match=r"1 calibration samples .* do not fill one batch of 2"):
        load_npz(saved(x=ROWS[:1]), ONE)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: None, "does not exist"),
        (lambda p: p.write_bytes(b""), "is no .npz file"),
        (lambda p: p.write_bytes(b"no archive"), "is no .npz file"),
        (lambda p: p.mkdir(), "does not exist"),
        (lambda p: np.savez(p, x=np.array([None, {}], dtype=object)), "cannot be read: Object arrays"),
    ],
)
def test_files_that_hold_no_arrays(tmp_path: Path, write, message: str) -> None:
    write(tmp_path / "data.npz")
    with pytest.raises(CalibrationError, match=message):
        load_npz(tmp_path / "data.npz", ONE)


def test_damaged_file(saved) -> None:
    path = saved(x=ROWS)
    content = bytearray(path.read_bytes())
    content[content.index(ROWS.tobytes())] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match="cannot be read: Bad CRC"):
        load_npz(path, ONE)


@pytest.mark.parametrize(
    "element",
    [
        torch.from_numpy(ROWS),
        ROWS,
        ROWS.astype(np.float64),
        ROWS.astype(">f4"),
        np.asfortranarray(ROWS),
        (ROWS,),
        [torch.from_numpy(ROWS).requires_grad_()],
        {"x": ROWS},
        {"anything": ROWS},
    ],
)
def test_elements_of_every_kind(element) -> None:
    batches = from_iterable(iter([element]), ONE)
    assert torch.equal(torch.cat([b[0] for b in batches]), torch.from_numpy(ROWS))
    assert all(b[0].dtype == torch.float32 and not b[0].requires_grad for b in batches)


@pytest.mark.parametrize("data", [torch.from_numpy(ROWS), ROWS, {"x": ROWS}])
def test_one_tensor_array_or_dictionary_is_one_element(data) -> None:
    assert len(from_iterable(data, ONE)) == 2


def test_single_samples_and_uneven_elements_are_joined() -> None:
    batches = from_iterable([ROWS[0], ROWS[1:4], torch.zeros(2, 3)], ONE)
    assert shapes(batches) == [[(2, 3)]] * 3
    assert torch.equal(batches[0][0], torch.from_numpy(ROWS[:2]))


def test_inputs_without_a_common_batch_size_are_taken_whole() -> None:
    inputs = [Info("x", (2, 3)), Info("weights", (5,)), Info("scalar", ())]
    element = (ROWS[:2], np.zeros(5), torch.tensor(1.0))
    assert shapes(from_iterable([element] * 3, inputs)) == [[(2, 3), (5,), ()]] * 3
    with pytest.raises(CalibrationError, match=r"x has shape \[4, 3\]; expected: \[2, 3\]"):
        from_iterable([(ROWS, *element[1:])], inputs)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_values_that_are_not_finite_are_named_with_their_sample(saved, value: float, kind: str) -> None:
    rows = ROWS.copy()
    rows[2, 1] = value
    with pytest.raises(CalibrationError, match=rf"^x has a value .* \({kind}\) in sample 2;"):
        load_npz(saved(x=rows), ONE)
    with pytest.raises(CalibrationError, match=rf"^x of element 1 has a value .* \({kind}\) in sample 2;"):
        from_iterable([ROWS, rows], ONE)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no calibration samples given"),
        ([np.zeros((0, 3), np.float32)], "no calibration samples given"),
        (None, "calibration data is a NoneType"),
        ("data.npz", "calibration data is a str"),
        ([None], "x is a NoneType; allowed: tensors and NumPy arrays"),
        ([(ROWS, ROWS)], "element 0 .* has 2 tensors; the model has 1 inputs: x"),
        ([ROWS[:, :2]], r"x has shape \[4, 2\]; expected: \[samples, 3\]"),
        ([ROWS[None]], r"x has shape \[1, 4, 3\]; expected: \[samples, 3\]"),
        ([ROWS.astype(np.uint8)], r"x has dtype torch.uint8; the model's input has torch.float32"),
        ([np.array(["a", "b"])], "x has dtype <U1; allowed are numbers"),
    ],
)
def test_refusals(data, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        from_iterable(data, ONE)


def test_different_numbers_of_samples_are_an_error() -> None:
    with pytest.raises(CalibrationError, match="x: 4, ids: 3"):
        from_iterable([{"x": ROWS, "ids": np.arange(3)}], TWO)


@pytest.mark.parametrize("enabled", [False, True])
def test_progress_goes_to_the_standard_error_and_changes_nothing(capsys, enabled: bool) -> None:
    assert list(track([1, 2, 3], enabled)) == [1, 2, 3]
    assert capsys.readouterr().out == ""
