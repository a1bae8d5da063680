"""The start-up benchmark on a small bundle: every engine that needs no peer starts, runs and answers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import small_bundle
import startup


def test_a_bundle_in_c_in_python_and_as_a_wheel(small_bundle_path: Path, tmp_path: Path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("needs a system compiler: cc is not installed")
    engines = startup.of_bundle(small_bundle_path, tmp_path, 1)
    program = startup.build(small_bundle_path, tmp_path)
    rows = startup.measure(program, engines, small_bundle.inputs(), threads=1, rounds=1)
    assert list(rows) == ["C", "Python", "Python, exported wheel"]
    for name, row in rows.items():
        assert list(row) == list(startup.COLUMNS), name
        assert row["load"] > 0, name
        assert row["second"] > 0, name
        assert row["load and first"] == pytest.approx(row["load"] + row["first"], rel=1e-9), (
            name
        )  # one process
        assert row["peak"] > 1, name
