"""The plot of a front is written, or says why not."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from qcompiler.errors import ConfigError
from qcompiler.report.front_plot import Mark, plot_front

FRONT = [Mark(1e-3, 20.0, 0.01, "0"), Mark(2e-3, 30.0, -0.001, "1"), Mark(3e-3, math.inf, 0.0, "2")]


@pytest.mark.parametrize("criterion", [None, "top-1"])
def test_a_plot_is_written(criterion: str | None, tmp_path: Path) -> None:
    plot_front(FRONT, FRONT[2], tmp_path / "front.png", title="plans", criterion=criterion)
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_that_cannot_be_written(tmp_path: Path) -> None:
    for name in ("front.txt", "missing/front.png"):
        with pytest.raises(ConfigError, match="cannot be written"):
            plot_front(FRONT, FRONT[0], tmp_path / name, title="plans", criterion=None)
