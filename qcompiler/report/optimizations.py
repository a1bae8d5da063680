"""What was tried to lower the error of a quantized model, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from rich.console import Group

from qcompiler.report.tables import table
from qcompiler.report.units import decibels


class Optimization(Protocol):
    """What the table shows of an optimization."""

    @property
    def name(self) -> str: ...
    @property
    def before_db(self) -> float | None: ...
    @property
    def after_db(self) -> float | None: ...
    @property
    def kept(self) -> bool: ...
    @property
    def changed(self) -> int: ...
    @property
    def refused(self) -> Sequence[str]: ...


def optimizations(tried: Iterable[Optimization]) -> Group:
    """A row for each, with the signal to quantization noise of the model's outputs before and after."""
    return table(
        "Optimizations (SQNR of the outputs, held-out calibration samples)",
        ["name", ">before", ">after", "kept", ">changed", "left alone"],
        [
            (
                entry.name,
                decibels(entry.before_db),
                decibels(entry.after_db),
                "yes" if entry.kept else "no",
                str(entry.changed),
                "; ".join(entry.refused),
            )
            for entry in tried
        ],
    )
