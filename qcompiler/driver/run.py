"""Runs a bundle on the samples of a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qcompiler import runtime
from qcompiler.driver.cross.model import EmulatedModel, open_bundle, run_many
from qcompiler.driver.data import Array, Samples, chunks, read_samples
from qcompiler.errors import InputError


@dataclass(frozen=True)
class OutputSummary:
    """One output over all samples."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float
    maximum: float
    mean: float


@dataclass(frozen=True)
class RunResult:
    """What :func:`run` did.

    Attributes:
        samples: samples that the model ran on.
        runs: runs that took.
        outputs: the outputs, with all samples along the first axis.
    """

    samples: int
    runs: int
    outputs: tuple[OutputSummary, ...]


def run(
    bundle: Path,
    data: Path,
    output: Path | None,
    threads: int | None = None,
    require_signature: Path | None = None,
) -> RunResult:
    """Runs a bundle on every sample of ``data``; one for another architecture, emulated.

    Args:
        bundle: the bundle's folder.
        data: ``.npz`` with an array per model input.
        output: ``.npz`` to write, with an array per model output; or None.
        threads: threads of one run; None for all physical cores.
        require_signature: a public key; the bundle must be signed by its owner.

    Raises:
        QCompilerError: the bundle, the data or the CPU is not fit, or ``output`` cannot be written.
    """
    model = open_bundle(bundle, threads, require_signature=require_signature)
    samples = read_samples(data, model.inputs)
    outputs = run_all(model, samples)
    if output is not None:
        _write(output, {spec.name: array for spec, array in zip(model.outputs, outputs, strict=True)})
    return RunResult(
        samples.count,
        samples.runs,
        tuple(
            OutputSummary(
                spec.name,
                spec.dtype,
                array.shape,
                float(array.min()) if array.size else np.inf,
                float(array.max()) if array.size else -np.inf,
                float(array.mean()) if array.size else 0.0,
            )
            for spec, array in zip(model.outputs, outputs, strict=True)
        ),
    )


def run_all(model: runtime.Model | EmulatedModel, samples: Samples) -> list[Array]:
    """The model's outputs for all samples, joined along the first axis.

    An output whose first axis is not the batch belongs to a run as a whole; the runs are its first axis then.
    """
    runs = [
        [keep_valid(array, valid, samples) for array in arrays]
        for chunk in chunks(samples.batches())
        for (valid, _), arrays in zip(chunk, run_many(model, [inputs for _, inputs in chunk]), strict=True)
    ]
    return [part[0] if samples.whole else np.concatenate(part) for part in zip(*runs, strict=True)]


def keep_valid(array: Array, valid: int, samples: Samples) -> Array:
    """The part of a run's output that belongs to its first ``valid`` samples; they are the first axis."""
    if samples.whole:
        return array
    if array.ndim == 0 or len(array) != samples.batch:
        return array[np.newaxis]
    return array[:valid]


def _write(path: Path, arrays: dict[str, Array]) -> None:
    """Writes an ``.npz`` beside ``path`` and renames it, so that no half-written file is left there."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # its last parameter is not one of the arrays
        partial.replace(path)
    except OSError as error:
        raise InputError(f"output {path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
