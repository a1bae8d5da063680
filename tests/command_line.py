"""What the fixtures of the command line give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and what it printed."""

    status: int
    out: str
    err: str


Command = Callable[..., Outcome]


@dataclass(frozen=True)
class Compiled:
    """A model, its data, and the bundle that the command line made of them."""

    model: Path
    calibration: Path
    data: Path
    bundle: Path
