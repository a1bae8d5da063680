"""A compiled neural network: ``load().run(*inputs)``. Needs NumPy only."""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Error", "Model", "Tensor", "load"]

_BUNDLE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bundle")
_LIBRARY = "lib/libqc_runtime.so"
_ALIGNMENT = 64


class Error(RuntimeError):
    """The model cannot be loaded or run; the message says why."""


class Tensor(NamedTuple):
    """An input or output of the model: ``real = scale * (quantized - zero_point)`` where these are given."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None
    zero_point: int | None


class _Info(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("ndim", ctypes.c_size_t),
        ("size", ctypes.c_size_t),
        ("quantized", ctypes.c_int),
        ("scale", ctypes.c_double),
        ("zero_point", ctypes.c_int32),
    )


class _Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


def load(threads: int | None = None) -> Model:
    """Loads the model, after its files and this CPU have been checked.

    Args:
        threads: threads of one run; None for all physical cores.

    Raises:
        Error: a file is damaged, the CPU cannot run the model, or ``threads`` is out of range.
    """
    return Model(_runtime(), threads)


class Model:
    """A loaded model; any number of threads may call it at the same time."""

    def __init__(self, library: ctypes.CDLL, threads: int | None = None) -> None:
        self._library = library
        self._handle = ctypes.c_void_p()
        self._check(library.qc_load(os.fsencode(_BUNDLE), ctypes.byref(self._handle)))
        if threads is not None:
            if threads < 1:
                raise Error(f"threads is {threads}; it must be at least 1")
            self._check(library.qc_set_threads(self._handle, threads))
        self.inputs = self._tensors(library.qc_input_count, library.qc_input_info)
        self.outputs = self._tensors(library.qc_output_count, library.qc_output_info)

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.qc_free(self._handle)

    @property
    def threads(self) -> int:
        """Threads of one run, the calling one included."""
        return int(self._library.qc_threads(self._handle))

    def run(self, *inputs: Any) -> tuple[np.ndarray[Any, Any], ...]:
        """Runs the model once.

        Args:
            inputs: an array, or what NumPy makes one of, for each of :attr:`inputs`, of exactly its shape and
                dtype.

        Returns:
            New arrays, in the order of :attr:`outputs`.

        Raises:
            Error: the inputs are not as the model needs them.
        """
        if len(inputs) != len(self.inputs):
            raise Error(f"got {len(inputs)} inputs; the model takes {len(self.inputs)}")
        given = [_checked(spec, value) for spec, value in zip(self.inputs, inputs, strict=True)]
        outputs = [_aligned(spec) for spec in self.outputs]
        self._check(
            self._library.qc_run(self._handle, _buffers(given), len(given), _buffers(outputs), len(outputs))
        )
        return tuple(outputs)

    def _tensors(self, count: Any, info_of: Any) -> tuple[Tensor, ...]:
        tensors = []
        for index in range(count(self._handle)):
            info = _Info()
            self._check(info_of(self._handle, index, ctypes.byref(info)))
            tensors.append(
                Tensor(
                    info.name.decode(),
                    tuple(info.shape[axis] for axis in range(info.ndim)),
                    info.dtype.decode(),
                    info.scale if info.quantized else None,
                    info.zero_point if info.quantized else None,
                )
            )
        return tuple(tensors)

    def _check(self, status: int) -> None:
        if status:
            raise Error(self._library.qc_error().decode(errors="replace"))


def _runtime() -> ctypes.CDLL:
    """The C runtime; it checks all files, but its own must be checked before it runs."""
    path = os.path.join(_BUNDLE, *_LIBRARY.split("/"))
    try:
        with open(path, "rb") as file, open(os.path.join(_BUNDLE, "manifest.txt"), encoding="utf-8") as lines:
            line = f"file {hashlib.sha256(file.read()).hexdigest()} {_LIBRARY}\n"
            if line not in lines:
                raise Error(f"{path} is damaged; install the package again")
    except (OSError, UnicodeDecodeError) as error:
        raise Error(f"{path} or its manifest cannot be read: {error}; install the package again") from error
    library = ctypes.CDLL(path)
    pointer, size = ctypes.c_void_p, ctypes.c_size_t
    library.qc_error.restype = ctypes.c_char_p
    library.qc_load.argtypes = [ctypes.c_char_p, pointer]
    library.qc_free.argtypes = [pointer]
    library.qc_free.restype = None
    library.qc_set_threads.argtypes = [pointer, ctypes.c_int]
    library.qc_threads.argtypes = [pointer]
    library.qc_run.argtypes = [pointer, pointer, size, pointer, size]
    for kind in ("input", "output"):
        count, info = getattr(library, f"qc_{kind}_count"), getattr(library, f"qc_{kind}_info")
        count.argtypes, count.restype = [pointer], size
        info.argtypes = [pointer, size, pointer]
    return library


def _checked(spec: Tensor, value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    if array.shape != spec.shape or array.dtype != np.dtype(spec.dtype):
        raise Error(
            f"input {spec.name!r} is {array.dtype}{list(array.shape)}; expected {spec.dtype}{list(spec.shape)}"
        )
    return np.ascontiguousarray(array).reshape(spec.shape)


def _aligned(spec: Tensor) -> np.ndarray[Any, Any]:
    dtype = np.dtype(spec.dtype)
    size = math.prod(spec.shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(spec.shape)


def _buffers(arrays: list[np.ndarray[Any, Any]]) -> Any:
    return (_Buffer * max(1, len(arrays)))(*(_Buffer(a.ctypes.data, a.nbytes) for a in arrays))
