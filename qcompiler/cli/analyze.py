"""``qcompile analyze``: which layers lose accuracy when a model is quantized, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.configuration import QUANTIZATION, configured
from qcompiler.cli.options import (
    Json,
    Limit,
    Traceback,
    emit_json,
    guarded,
    left_in_float,
    optimizations,
)
from qcompiler.config import CompileConfig


@configured(*QUANTIZATION, "plan", "dim", "progress")
def command(
    *,
    model: Annotated[
        str, typer.Argument(help="The float model, as for 'qcompile compile'.", show_default=False)
    ],
    calibration: Annotated[
        Path,
        typer.Option(
            help="An .npz with an array per model input, as for 'qcompile compile'.", show_default=False
        ),
    ],
    config: CompileConfig,
    limit: Limit = None,
    html: Annotated[
        Path | None, typer.Option(help="File to write a page with plots to.", show_default=False)
    ] = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Measures each layer: its error and the cause, and what it alone does to the model's outputs."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.analyze import analyze, write_page

        result = analyze(model, config, calibration=calibration, limit=limit)
        if html is not None:
            write_page(result, f"Quantization of {model}", html)
        if json:
            emit_json(result)
            return
        report.show(
            report.analysis_table(result.errors),
            *optimizations(result.optimizations),
            *left_in_float(result.float_operators),
        )
