"""Options of a compilation: a frozen dataclass that is checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from qcompiler.errors import ConfigError

Observer = Literal["minmax", "moving-average", "percentile", "mse"]


@dataclass(frozen=True)
class CompileConfig:
    """Options of :func:`qcompiler.compile`; the command line's options have the same names.

    Attributes:
        target: name of a target description, or ``native`` for the CPU this runs on.
        observer: how activation ranges are found in the calibration data.
        percentile: for ``percentile``, the share of values inside the range, in percent, in (50, 100].
        averaging_constant: for ``moving-average``, the weight of the newest batch, in (0, 1].
        skip_first: leave the first convolution or linear layer in float.
        skip_last: leave the last convolution or linear layer in float.
        keep_float: names of operators (``conv2d``) or of modules (``layer1.0.conv1``) left in float.
        embed_reference: store the folded module in the bundle, so that ``verify`` works on it.
        dump_ir: folder that gets one numbered file a pass, or None.
        progress: show a progress bar for long work.
    """

    target: str = "native"
    observer: Observer = "minmax"
    percentile: float = 99.99
    averaging_constant: float = 0.01
    skip_first: bool = False
    skip_last: bool = False
    keep_float: tuple[str, ...] = ()
    embed_reference: bool = True
    dump_ir: Path | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        if self.observer not in get_args(Observer):
            raise ConfigError(f"unknown observer {self.observer!r}; known: {', '.join(get_args(Observer))}")
        if not 50.0 < self.percentile <= 100.0:
            raise ConfigError(f"percentile is {self.percentile}; it must be above 50 and at most 100")
        if not 0.0 < self.averaging_constant <= 1.0:
            raise ConfigError(
                f"averaging_constant is {self.averaging_constant}; it must be above 0 and at most 1"
            )
        if not self.target:
            raise ConfigError("target is empty; run 'qcompile targets' for the known ones")

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in fields(cls))
