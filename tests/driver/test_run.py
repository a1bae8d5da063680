"""A bundle runs on a file of samples and writes its outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import small_bundle

from qcompiler.driver.data import Samples
from qcompiler.driver.run import keep_valid, run
from qcompiler.errors import InputError


def data(folder: Path) -> Path:
    x, b = small_bundle.inputs()
    np.savez(folder / "in.npz", x=x, b=b)
    return folder / "in.npz"


def test_outputs_are_written(small_bundle_path: Path, tmp_path: Path) -> None:
    result = run(small_bundle_path, data(tmp_path), tmp_path / "out.npz", threads=1)
    expected = small_bundle.expected(*small_bundle.inputs())
    with np.load(tmp_path / "out.npz") as written:
        assert written.files == ["y", "z", "same", "constant", "twin"]
        for name, array in zip(written.files, expected, strict=True):
            np.testing.assert_allclose(written[name], array, rtol=1e-4, atol=1e-4)
    assert result.outputs[0].maximum == pytest.approx(float(expected[0].max()), rel=1e-4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.npz", "out.npz"]


def test_output_that_cannot_be_written_is_named(small_bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        run(small_bundle_path, data(tmp_path), tmp_path / "none" / "out.npz", threads=1)


def test_only_valid_samples_are_kept() -> None:
    samples = Samples((np.zeros((3, 1)),), None, 2, 3)
    assert keep_valid(np.zeros((2, 5)), 1, samples).shape == (1, 5)
    assert keep_valid(np.zeros((7, 5)), 1, samples).shape == (1, 7, 5)
    assert keep_valid(np.zeros(()), 1, samples).shape == (1,)
