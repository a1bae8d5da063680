"""``qcompile analyze``: which layers lose accuracy when a model is quantized, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.options import (
    CalibrationMethodOption,
    Dim,
    EffortOption,
    Json,
    KeepFloatOption,
    Limit,
    PercentileOption,
    ProgressOption,
    Traceback,
    emit_json,
    guarded,
    left_in_float,
)
from qcompiler.config import CompileConfig

_DEFAULTS = CompileConfig()


def command(
    model: Annotated[
        str, typer.Argument(help="The float model, as for 'qcompile compile'.", show_default=False)
    ],
    calibration: Annotated[
        Path,
        typer.Option(
            help="An .npz with an array per model input, as for 'qcompile compile'.", show_default=False
        ),
    ],
    target: Annotated[
        str, typer.Option(help="Chip to quantize for (qcompile targets); 'native' is this machine's.")
    ] = _DEFAULTS.target,
    effort: EffortOption = _DEFAULTS.effort,
    calibration_method: CalibrationMethodOption = _DEFAULTS.calibration_method,
    percentile: PercentileOption = _DEFAULTS.percentile,
    keep_float: KeepFloatOption = None,
    dim: Dim = None,
    limit: Limit = None,
    html: Annotated[
        Path | None, typer.Option(help="File to write a page with plots to.", show_default=False)
    ] = None,
    progress: ProgressOption = True,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Measures each layer: its error and the cause, and what it alone does to the model's outputs."""
    with guarded(traceback):
        config = CompileConfig(
            target=target,
            effort=effort,  # type: ignore[arg-type]  # CompileConfig checks it
            calibration_method=calibration_method,  # type: ignore[arg-type]  # the same
            percentile=percentile,
            keep_float=tuple(keep_float or ()),
            dim=tuple(dim or ()),
            progress=progress,
        )
        from qcompiler import report
        from qcompiler.driver.analyze import analyze, write_page

        result = analyze(model, config, calibration=calibration, limit=limit)
        if html is not None:
            write_page(result, f"Quantization of {model}", html)
        if json:
            emit_json(result)
            return
        parts = [report.analysis_table(result.errors)]
        if result.effects:
            parts.append(report.optimizations(result.effects))
        parts += left_in_float(result.float_operators)
        report.show(*parts)
