"""Samples from ``.npz`` files, cut into runs of a model."""

from __future__ import annotations

import itertools
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.errors import InputError
from qcompiler.runtime import TensorSpec

Array = npt.NDArray[Any]

LABELS = "labels"
"""Name of the array that holds the right class of each sample."""


CHUNK = 64
"""Runs of one engine before those of another: idle threads of an engine wait at full speed for a while,
so taking turns at every run would halve the speed of both."""

Batch = tuple[int, tuple[Array, ...]]
"""How many samples of a run count, and its inputs."""


@dataclass(frozen=True, eq=False)
class Samples:
    """A model's inputs for a number of samples.

    Attributes:
        inputs: one array a model input; the first axis is the sample.
        labels: the right class of each sample, or None.
        batch: samples of one run.
        count: samples.
        whole: the arrays are the inputs of one run, whose first axis is no batch.
    """

    inputs: tuple[Array, ...]
    labels: Array | None
    batch: int
    count: int
    whole: bool = False

    @property
    def runs(self) -> int:
        return -(-self.count // self.batch)

    def batches(self) -> Iterator[Batch]:
        """For each run how many of its samples count, and its inputs; a sample fills up the last run."""
        if self.whole:
            yield 1, self.inputs
            return
        for first in range(0, self.count, self.batch):
            index = np.minimum(np.arange(first, first + self.batch), self.count - 1)
            yield (
                min(self.batch, self.count - first),
                tuple(np.ascontiguousarray(array[index]) for array in self.inputs),
            )


def chunks(batches: Iterator[Batch]) -> Iterator[list[Batch]]:
    """The runs in groups of ``CHUNK``, the last one shorter."""
    while chunk := list(itertools.islice(batches, CHUNK)):
        yield chunk


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an ``.npz`` file; nothing of it is unpickled.

    Raises:
        InputError: the file is missing, is no ``.npz``, or holds Python objects.
    """
    if not path.is_file():
        raise InputError(f"data {path} does not exist; give an .npz file with an array per model input")
    if not zipfile.is_zipfile(path):
        raise InputError(f"data {path} is no .npz file; write it with numpy.savez(file, input_name=array)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"data {path} cannot be read: {error}; write it with numpy.savez") from error


def read_samples(path: Path, specs: Sequence[TensorSpec], limit: int | None = None) -> Samples:
    """The samples of an ``.npz`` file, matched to a model's inputs by name.

    For a model with one input the file's only array besides ``labels`` may have any name.

    Args:
        path: the file.
        specs: the model's inputs.
        limit: take at most this many samples, from the first.

    Raises:
        InputError: an input has no array, or an array has the wrong shape or dtype; the message names it.
    """
    arrays = read_arrays(path)
    labels = None if any(spec.name == LABELS for spec in specs) else arrays.pop(LABELS, None)
    inputs = _match(path, arrays, specs)
    for spec, array in zip(specs, inputs, strict=True):
        if array.dtype != np.dtype(spec.dtype):
            raise InputError(
                f"data {path}: array of input {spec.name!r} has dtype {array.dtype}; expected {spec.dtype}: "
                f"convert it with .astype('{spec.dtype}')"
            )
    batches = {spec.shape[0] if spec.shape else 0 for spec in specs}
    if len(batches) == 1 and batches != {0}:
        return _cut(path, inputs, specs, labels, batches.pop(), limit)
    return _whole(path, inputs, specs, labels)


def _match(path: Path, arrays: Mapping[str, Array], specs: Sequence[TensorSpec]) -> tuple[Array, ...]:
    names = [spec.name for spec in specs]
    if len(specs) == 1 and len(arrays) == 1:
        return tuple(arrays.values())
    missing = [name for name in names if name not in arrays]
    if missing:
        found = ", ".join(arrays) or "nothing"
        raise InputError(
            f"data {path} has no array for input {', '.join(missing)}; it holds {found}; "
            f"the model takes {', '.join(names)}"
        )
    return tuple(arrays[name] for name in names)


def _whole(
    path: Path, inputs: tuple[Array, ...], specs: Sequence[TensorSpec], labels: Array | None
) -> Samples:
    """The inputs of a model that has no batch axis: one run."""
    if any(array.shape != spec.shape for array, spec in zip(inputs, specs, strict=True)):
        raise InputError(
            f"data {path}: the model's inputs have no common batch axis; give arrays of exactly the shapes "
            + ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)
        )
    if labels is not None:
        raise InputError(f"data {path} has labels, and the model's inputs have no common batch axis")
    return Samples(inputs, None, 1, 1, whole=True)


def _cut(
    path: Path,
    inputs: Sequence[Array],
    specs: Sequence[TensorSpec],
    labels: Array | None,
    batch: int,
    limit: int | None,
) -> Samples:
    """The samples along the first axis of every array."""
    for spec, array in zip(specs, inputs, strict=True):
        if array.shape[1:] != spec.shape[1:] or array.ndim != len(spec.shape):
            raise InputError(
                f"data {path}: array of input {spec.name!r} has shape {list(array.shape)}; expected "
                f"[samples, {', '.join(map(str, spec.shape[1:]))}]"
            )
    counts = {len(array) for array in inputs} | (set() if labels is None else {len(np.atleast_1d(labels))})
    if len(counts) != 1:
        raise InputError(f"data {path}: arrays differ in their number of samples: {sorted(counts)}")
    count = counts.pop()
    if count == 0:
        raise InputError(f"data {path} holds no samples")
    taken = count if limit is None else min(count, limit)
    return Samples(
        tuple(array[:taken] for array in inputs),
        None if labels is None else labels[:taken],
        batch,
        taken,
    )
