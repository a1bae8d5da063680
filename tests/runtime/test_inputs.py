"""Inputs are taken without a copy where kernels can read them, and refused by name where they are wrong."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.errors import InputError
from qcompiler.runtime.inputs import ALIGNMENT, aligned_empty, order_inputs, to_array
from qcompiler.runtime.manifest import TensorSpec

SPEC = TensorSpec("x", (4, 6), "float32")
OTHER = TensorSpec("mask", (4,), "uint8")


def aligned(shape: tuple[int, ...] = (4, 6)) -> Any:
    array = aligned_empty(TensorSpec("x", shape, "float32"))
    array[...] = np.arange(array.size, dtype=np.float32).reshape(shape)
    return array


def readonly() -> Any:
    array = aligned()
    array.flags.writeable = False
    return array


def misaligned() -> Any:
    memory = aligned_empty(TensorSpec("x", (25,), "float32"))
    memory[1:] = np.arange(24, dtype=np.float32)
    return memory[1:].reshape(4, 6)


@pytest.mark.parametrize("shape", [(), (1,), (5, 7, 3)])
def test_aligned_empty(shape: tuple[int, ...]) -> None:
    array = aligned_empty(TensorSpec("x", shape, "int16"))
    assert (array.shape, array.dtype, array.ctypes.data % ALIGNMENT) == (shape, np.int16, 0)


def test_aligned_array_is_not_copied() -> None:
    array = aligned()
    assert to_array(SPEC, array) is array


def test_torch_tensor_is_not_copied() -> None:
    tensor = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    assert tensor.data_ptr() % ALIGNMENT == 0
    assert to_array(SPEC, tensor).ctypes.data == tensor.data_ptr()


@pytest.mark.parametrize(
    "array",
    [
        readonly(),
        misaligned(),
        aligned((6, 4)).reshape(4, 6, order="F"),
        aligned((8, 6))[::2],
        torch.rand(6, 4).T,
    ],
    ids=["read-only", "misaligned", "fortran", "strided", "torch-transposed"],
)
def test_other_arrays_are_copied_to_what_kernels_read(array: Any) -> None:
    taken = to_array(SPEC, array)
    np.testing.assert_array_equal(taken, np.asarray(array))
    assert taken.flags.c_contiguous
    assert taken.flags.writeable
    assert taken.ctypes.data % ALIGNMENT == 0
    assert not np.may_share_memory(taken, np.asarray(array))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros((4, 5), np.float32), r"input 'x' has shape \[4, 5\]; expected \[4, 6\]"),
        (np.zeros((4, 6)), r"input 'x' has dtype float64; expected float32: convert it"),
        (np.zeros((4, 6), ">f4"), "input 'x' has dtype >f4"),
        (torch.zeros(4, 6, dtype=torch.int32), "input 'x' has dtype int32"),
        ([[0.0] * 6] * 4, r"of type list; expected x: float32\[4, 6\], as a NumPy array, a torch tensor"),
        (torch.zeros(4, 6, requires_grad=True), "cannot be read through DLPack.*detached CPU tensor"),
        (torch.zeros(4, 6, dtype=torch.bfloat16), "cannot be read through DLPack"),
        (torch.zeros(4, 6, device="meta"), "cannot be read through DLPack"),
    ],
)
def test_wrong_input_is_named(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        to_array(SPEC, value)


def test_inputs_by_position_and_by_name() -> None:
    assert order_inputs((SPEC, OTHER), (1, 2)) == [1, 2]
    assert order_inputs((SPEC, OTHER), ({"mask": 2, "x": 1},)) == [1, 2]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((), r"got 0 inputs; the model takes 2: x: float32\[4, 6\], mask: uint8\[4\]"),
        ((1, 2, 3), "got 3 inputs"),
        (({"x": 1},), "missing mask; the model takes"),
        (({"x": 1, "mask": 2, "y": 3},), "unknown y"),
        (({"X": 1},), "missing x, mask; unknown X"),
    ],
)
def test_wrong_number_or_names(inputs: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        order_inputs((SPEC, OTHER), inputs)
