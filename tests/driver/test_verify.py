"""A bundle agrees with its own reference, and not with another one's."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import small_bundle

from qcompiler import reference
from qcompiler.driver.bundle import REFERENCE_NAME
from qcompiler.driver.verify import Comparison, verify
from qcompiler.errors import BundleError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x, b = small_bundle.inputs()
    np.savez(tmp_path / "in.npz", x=x, b=b)
    return tmp_path / "in.npz"


def with_reference(small: Path, folder: Path, seed: int) -> Path:
    """The small bundle with the reference of the weights of ``seed``; its library has those of seed 0."""
    copy = shutil.copytree(small, folder / "bundle")
    reference.save(small_bundle.module_before_kernels(seed), copy / REFERENCE_NAME)
    added = {REFERENCE_NAME: "0" * 64}
    small_bundle.rewrite(copy, lambda m: dataclasses.replace(m, files={**m.files, **added}), rehash=True)
    return copy


def test_equal_weights_pass(small_bundle_path: Path, data: Path, tmp_path: Path) -> None:
    result = verify(with_reference(small_bundle_path, tmp_path, seed=0), data, threads=1)
    assert result.fault is None
    # A float matrix product is outside of the promise of equal bits; inputs and constants are not.
    assert [output.exact for output in result.outputs] == [False, False, True, True, False]
    assert all(output.passed for output in result.outputs)
    assert result.outputs[2].elements == 4 * 32


def test_other_weights_fail(small_bundle_path: Path, data: Path, tmp_path: Path) -> None:
    result = verify(with_reference(small_bundle_path, tmp_path, seed=1), data, threads=1)
    assert result.fault is not None
    assert "output 'y' differs from the reference in" in result.fault
    assert "3 of 5 outputs failed" in result.fault


def test_bundle_without_a_reference_is_refused(small_bundle_path: Path, data: Path) -> None:
    with pytest.raises(BundleError, match=f"no {REFERENCE_NAME}; compile the model again"):
        verify(small_bundle_path, data, threads=1)


def test_exact_outputs_are_compared_by_their_bits() -> None:
    zeros = np.array([0.0, 1.0], np.float32)
    comparison = Comparison("y")
    comparison.add(zeros, np.array([-0.0, 1.0], np.float32), exact=True)
    result = comparison.result()
    assert (result.elements, result.differing, result.largest_difference, result.passed) == (2, 1, 0.0, False)
    nan = np.array([np.nan], np.float32)
    comparison = Comparison("y")
    comparison.add(nan, nan.copy(), exact=True)
    assert comparison.result().differing == 0


def test_inexact_outputs_may_differ_a_little() -> None:
    wanted = np.linspace(-1, 1, 100, dtype=np.float32)
    for noise, passed in ((1e-3, True), (0.5, False)):
        comparison = Comparison("y")
        comparison.add(wanted + np.float32(noise), wanted, exact=False)
        assert comparison.result().passed is passed
