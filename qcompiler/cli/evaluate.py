"""``qcompile evaluate``: accuracy of a bundle on data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.options import (
    Bundle,
    Json,
    Limit,
    ProgressOption,
    RequireSignature,
    SourceModel,
    Threads,
    Traceback,
    emit_json,
    guarded,
)


def command(
    bundle: Bundle,
    data: Annotated[
        Path,
        typer.Option(
            help="An .npz with an array per model input; an array 'labels' gives top-1.", show_default=False
        ),
    ],
    model: SourceModel = None,
    threads: Threads = None,
    limit: Limit = None,
    progress: ProgressOption = True,
    require_signature: RequireSignature = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Measures accuracy against labels, and agreement with the float model."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.evaluate import evaluate

        result = evaluate(
            bundle,
            data,
            model=model,
            threads=threads,
            limit=limit,
            require_signature=require_signature,
            progress=progress,
        )
        if json:
            emit_json(result)
            return
        values = {"samples": str(result.samples)}
        if result.top1 is not None:
            values["top-1, int8"] = report.percent(result.top1)
        if result.float_top1 is not None:
            values["top-1, float"] = report.percent(result.float_top1)
        if result.agreement is not None:
            values["same class as float"] = report.percent(result.agreement)
        for name, ratio in result.sqnr_db.items():
            values[f"SQNR of {name}"] = report.decibels(ratio)
        report.show(report.facts(f"Accuracy of {bundle}", values))
