"""The examples of training run to their end, with tiny settings."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "options", "last"),
    [
        ("ptq", [], "left in float: nothing"),
        ("qat_distillation", [], "trained and compiled differ by 0."),
        ("prune_qat", ["--reduction", "0.3"], "multiplications of the library: "),
    ],
)
def test_an_example_runs(
    name: str,
    options: list[str],
    last: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = tmp_path / "bundle"
    monkeypatch.setattr(sys, "argv", [name, "--epochs", "1", "--output", str(bundle), *options])
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].startswith(last), printed
    assert (bundle / "model.so").is_file()
