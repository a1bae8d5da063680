"""The front of a search as a plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qcompiler.errors import ConfigError

Mark = tuple[float, float, str]
"""Seconds, the value on the other axis, and a label."""


def plot_front(front: Sequence[Mark], chosen: Mark | None, path: Path, *, title: str, axis: str) -> None:
    """Writes a plot of plans: latency against what they lose.

    Args:
        front: the plans.
        chosen: the plan that was compiled, as measured.
        path: file to write; its suffix is the format: ``.png``, ``.svg`` or ``.pdf``.
        title: heading.
        axis: what the vertical axis is.

    Raises:
        ConfigError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib: pip install 'qcompiler[plots]'") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    panel = figure.add_subplot()
    milliseconds = [1e3 * seconds for seconds, _, _ in front]
    panel.plot(milliseconds, [y for _, y, _ in front], "o-", color="#2c6fbb", markersize=4, label="promised")
    for x, (_, y, label) in zip(milliseconds, front, strict=True):
        panel.annotate(label, (x, y), (3, 4), textcoords="offset points", fontsize=7, color="#555555")
    if chosen is not None:
        seconds, y, label = chosen
        panel.plot(
            [1e3 * seconds], [y], "*", color="#c0392b", markersize=13, label=f"chosen, measured ({label})"
        )
    panel.set_xlabel("latency, ms")
    panel.set_ylabel(axis)
    panel.set_title(title, fontsize=10, loc="left")
    panel.grid(alpha=0.25)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(frameon=False)
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise ConfigError(f"plot {path} cannot be written: {error}") from error
