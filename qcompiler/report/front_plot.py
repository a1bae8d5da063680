"""The front of a search as a plot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.errors import ConfigError


@dataclass(frozen=True)
class Mark:
    """A plan in a plot.

    Attributes:
        seconds: of a run.
        sqnr_db: of its outputs; infinite for the float model itself.
        drop: accuracy that it loses, as a fraction; None without classes.
        label: text beside it.
    """

    seconds: float
    sqnr_db: float
    drop: float | None
    label: str


def plot_front(front: Sequence[Mark], chosen: Mark, path: Path, *, title: str, criterion: str | None) -> None:
    """Writes a plot of plans: latency against noise, and against accuracy where there are classes.

    Args:
        front: the plans, as promised.
        chosen: the plan that was compiled, as measured.
        path: file to write; its suffix is the format: ``.png``, ``.svg`` or ``.pdf``.
        title: heading.
        criterion: what a drop is one of; None for no such panel.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install 'qcompiler[plots]'") from error
    figure = Figure(figsize=(7, 4 if criterion is None else 6.5), layout="constrained")
    panels = figure.subplots(1 if criterion is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    finite = [m for m in front if math.isfinite(m.sqnr_db)]
    _panel(panels[0], [(m, m.sqnr_db) for m in finite], (chosen, chosen.sqnr_db), "SQNR of the outputs, dB")
    if criterion is not None:
        drops = [(m, 100 * m.drop) for m in front if m.drop is not None]
        best = (chosen, 100 * (chosen.drop or 0.0))
        _panel(panels[1], drops, best, f"drop of {criterion}, points")
    panels[0].set_title(title, fontsize=10, loc="left")
    panels[0].legend(frameon=False)
    panels[-1].set_xlabel("latency, ms")
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"plot {path} cannot be written: {error}") from error


def _panel(panel: Any, marks: Sequence[tuple[Mark, float]], chosen: tuple[Mark, float], axis: str) -> None:
    x, y = [1e3 * m.seconds for m, _ in marks], [value for _, value in marks]
    panel.plot(x, y, "o-", color="#2c6fbb", markersize=4, label="promised")
    for mark, value in marks:
        panel.annotate(
            mark.label, (1e3 * mark.seconds, value), (0, 5), textcoords="offset points", fontsize=7,
            color="#555555", ha="center",
        )  # fmt: skip
    mark, value = chosen
    shown = value if math.isfinite(value) else max(y, default=0.0)
    panel.plot([1e3 * mark.seconds], [shown], "*", color="#c0392b", markersize=13, label="chosen, measured")
    panel.set_ylabel(axis)
    panel.margins(y=0.12)
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
