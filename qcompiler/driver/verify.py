"""A bundle against the reference interpreter."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qcompiler import reference
from qcompiler.driver.bundle import REFERENCE_NAME
from qcompiler.driver.cross.model import EmulatedModel, open_bundle, run_many
from qcompiler.driver.data import Array, chunks, read_samples
from qcompiler.driver.evaluate import Sqnr
from qcompiler.driver.run import keep_valid
from qcompiler.errors import BundleError
from qcompiler.report import progress as progress_bar

CLOSE_DB = 30.0
"""Least ratio of signal to difference for an output that float operators had a part in, in decibels.

Such an output may differ in a float's last bit, and where that is quantized again, by a step of one in 255
here and there; that stays above 40 dB. A wrong kernel is near 0.
"""


@dataclass(frozen=True)
class OutputVerification:
    """One output, compared.

    Attributes:
        name: the output.
        exact: no operator outside of the integer arithmetic has a part in it, so all bits must be equal.
        elements: elements compared.
        differing: elements whose bits differ.
        largest_difference: the largest difference of two elements.
        sqnr_db: ratio of the reference to the difference, in decibels; infinite where they are equal.
        passed: equal bits if ``exact``, else a ratio of at least ``CLOSE_DB``.
    """

    name: str
    exact: bool
    elements: int
    differing: int
    largest_difference: float
    sqnr_db: float
    passed: bool


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    Attributes:
        samples: samples compared.
        outputs: the outputs.
        emulated: the processor that was emulated, or None for a run on this machine's own.
        fault: what failed, in one line, or None.
    """

    samples: int
    outputs: tuple[OutputVerification, ...]
    emulated: str | None
    fault: str | None


class Comparison:
    """The differences of one output, summed over runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.exact = True
        self.elements = self.differing = 0
        self.largest = 0.0
        self.ratio = Sqnr()

    def add(self, found: Array, wanted: Array, exact: bool) -> None:
        self.exact &= exact
        same = same_bits(found, wanted)
        self.elements += same.size
        self.differing += int(np.count_nonzero(~same))
        self.ratio.add(wanted, found)
        if not same.all():
            difference = np.abs(found[~same].astype(np.float64) - wanted[~same].astype(np.float64))
            # fmax lets a NaN among the differences pass; differing counts it.
            self.largest = max(self.largest, float(np.fmax.reduce(difference)))

    def result(self) -> OutputVerification:
        decibels = self.ratio.decibels
        passed = self.differing == 0 or (not self.exact and decibels >= CLOSE_DB)
        return OutputVerification(
            self.name, self.exact, self.elements, self.differing, self.largest, decibels, passed
        )


def verify(
    bundle: Path,
    data: Path,
    *,
    threads: int | None = None,
    require_signature: Path | None = None,
    limit: int | None = None,
    progress: bool = False,
) -> Verification:
    """Compares a bundle's outputs with those of the reference interpreter.

    A bundle for another architecture runs emulated, where an emulator is installed.

    Args:
        bundle: the bundle's folder, compiled with its reference embedded.
        data: ``.npz`` with an array per model input.
        threads: threads of one run; None for all physical cores.
        require_signature: a public key; the bundle must be signed by its owner.
        limit: compare at most this many samples.
        progress: show a progress bar.

    Raises:
        BundleError: the bundle has no reference.
        QCompilerError: the bundle or the data cannot be used.
    """
    compiled = open_bundle(bundle, threads, require_signature=require_signature)
    if REFERENCE_NAME not in compiled.manifest.files:
        raise BundleError(
            f"bundle {bundle} has no {REFERENCE_NAME}; compile the model again with --embed-reference"
        )
    samples = read_samples(data, compiled.inputs, limit)
    interpreter = reference.Interpreter(reference.load(bundle / REFERENCE_NAME))
    comparisons = [Comparison(spec.name) for spec in compiled.outputs]
    with progress_bar("verify", samples.runs, progress) as advance:
        for chunk in chunks(samples.batches()):
            found = run_many(compiled, [inputs for _, inputs in chunk])
            for (valid, inputs), arrays in zip(chunk, found, strict=True):
                wanted = interpreter.run(inputs)
                for comparison, array, value in zip(comparisons, arrays, wanted, strict=True):
                    comparison.add(
                        keep_valid(array, valid, samples),
                        keep_valid(value.array, valid, samples),
                        value.exact,
                    )
                advance(1)
    results = tuple(comparison.result() for comparison in comparisons)
    emulated = compiled.cpu if isinstance(compiled, EmulatedModel) else None
    return Verification(samples.count, results, emulated, _fault(results))


def same_bits(a: Array, b: Array) -> npt.NDArray[np.bool_]:
    """Where elements have the same bits: -0 is not 0, and a NaN is itself."""
    if a.dtype != b.dtype or a.shape != b.shape:
        raise BundleError(
            f"library returns {a.dtype}{list(a.shape)}, the reference {b.dtype}{list(b.shape)}; "
            "compile the model again"
        )
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    equal: npt.NDArray[np.bool_] = np.ascontiguousarray(a).view(unsigned) == np.ascontiguousarray(b).view(
        unsigned
    )
    return equal


def _fault(outputs: tuple[OutputVerification, ...]) -> str | None:
    failed = [output for output in outputs if not output.passed]
    if not failed:
        return None
    worst = failed[0]
    return (
        f"output {worst.name!r} differs from the reference in {worst.differing} of {worst.elements} "
        f"elements, by up to {worst.largest_difference:.6g}; {len(failed)} of {len(outputs)} outputs failed"
    )
