"""Takes a user's arrays into the form that compiled kernels read: dense, aligned, of the declared dtype."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.errors import InputError
from qcompiler.runtime.manifest import TensorSpec

Array = npt.NDArray[Any]

ALIGNMENT = 64
"""Bytes. Kernels load whole vector registers with aligned instructions; other addresses end the process."""


def order_inputs(specs: Sequence[TensorSpec], inputs: Sequence[Any]) -> list[Any]:
    """The inputs in the model's order, from one value an input or from one mapping by name.

    Raises:
        InputError: there are too few, too many, or unknown names.
    """
    expected = ", ".join(describe(spec) for spec in specs)
    if len(inputs) == 1 and isinstance(inputs[0], Mapping):
        given = inputs[0]
        names = [spec.name for spec in specs]
        missing = [name for name in names if name not in given]
        unknown = [str(name) for name in given if name not in names]
        if missing or unknown:
            faults = [
                f"{fault} {', '.join(n)}" for fault, n in (("missing", missing), ("unknown", unknown)) if n
            ]
            raise InputError(f"inputs by name: {'; '.join(faults)}; the model takes {expected}")
        return [given[name] for name in names]
    if len(inputs) != len(specs):
        raise InputError(f"got {len(inputs)} inputs; the model takes {len(specs)}: {expected}")
    return list(inputs)


def to_array(spec: TensorSpec, value: Any) -> Array:
    """``value`` as an array that a kernel can read; without a copy where it is dense, aligned and writeable.

    Args:
        spec: what the model expects.
        value: NumPy array, torch tensor, or anything else with ``__dlpack__``, in the CPU's memory.

    Raises:
        InputError: it is none of these, or its shape or dtype is another one.
    """
    array = value if isinstance(value, np.ndarray) else _from_dlpack(spec, value)
    if array.shape != spec.shape:
        raise InputError(
            f"input {spec.name!r} has shape {_shape(array.shape)}; expected {_shape(spec.shape)}"
        )
    if array.dtype != np.dtype(spec.dtype):
        raise InputError(
            f"input {spec.name!r} has dtype {array.dtype}; expected {spec.dtype}: convert it with "
            f".astype('{spec.dtype}'), or with .to(torch.{spec.dtype}) in torch"
        )
    # DLPack cannot tell the kernel of read-only memory, so NumPy refuses to pass it on.
    if array.flags.c_contiguous and array.flags.writeable and array.ctypes.data % ALIGNMENT == 0:
        return array
    copy = aligned_empty(spec)
    copy[...] = array
    return copy


def aligned_empty(spec: TensorSpec) -> Array:
    """An uninitialized array of the tensor's shape and dtype at an aligned address."""
    dtype = np.dtype(spec.dtype)
    size = math.prod(spec.shape) * dtype.itemsize
    memory = np.empty(size + ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(spec.shape)


def describe(spec: TensorSpec) -> str:
    """The tensor in words, such as ``x: float32[1, 3, 224, 224]``."""
    return f"{spec.name}: {spec.dtype}{_shape(spec.shape)}"


def _from_dlpack(spec: TensorSpec, value: Any) -> Array:
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            f"input {spec.name!r} is of type {type(value).__name__}; expected {describe(spec)}, as a "
            "NumPy array, a torch tensor, or another object with __dlpack__"
        )
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"input {spec.name!r} cannot be read through DLPack: {error}; give a detached CPU tensor "
            f"of dtype {spec.dtype}"
        ) from error


def _shape(shape: Sequence[int]) -> str:
    return f"[{', '.join(map(str, shape))}]"
