"""What an engine is to the benchmark."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.driver.data import Array, Samples

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Session = Callable[[Sequence[Array]], Any]
"""Runs a loaded model on one array an input."""


@dataclass(frozen=True)
class Peer:
    """An engine that runs a model.

    Attributes:
        name: its name in reports.
        dtype: what it computes in.
        packages: distributions it needs, its own first; their import names have the same spelling.
        prepare: from the float model, calibration samples and a folder to the file that a session loads.
        session: loads that file for a number of threads.
        obstacle: why it cannot run although its packages are there, or None.
    """

    name: str
    dtype: str
    packages: tuple[str, ...]
    prepare: Callable[[ExportedProgram, Samples, Path], Path]
    session: Callable[[Path, int], Session]
    obstacle: Callable[[], str | None] = lambda: None

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.packages[0])

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        absent = [name for name in self.packages if importlib.util.find_spec(name) is None]
        if absent:
            return f"not installed: {', '.join(absent)} (pip install 'qcompiler[peers]')"
        return self.obstacle()
