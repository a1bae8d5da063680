"""``qcompile quantize``: a quantized model as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from qcompiler.cli.options import Json, ProgressOption, Traceback, emit_json, guarded
from qcompiler.config import CompileConfig, Observer

_DEFAULTS = CompileConfig()


def command(
    model: Annotated[
        str,
        typer.Argument(help="A .pt2 archive or package.module:function, in float.", show_default=False),
    ],
    calibration: Annotated[
        Path, typer.Option(help="An .npz with an array per model input.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="Archive (.pt2) to write.", show_default=False)],
    target: Annotated[
        str, typer.Option(help="Chip whose quantization rules count; those of all known ones are the same.")
    ] = _DEFAULTS.target,
    observer: Annotated[
        str, typer.Option(help=f"How activation ranges are found: {', '.join(get_args(Observer))}.")
    ] = _DEFAULTS.observer,
    keep_float: Annotated[
        list[str] | None,
        typer.Option(
            help="Operator or module to leave in float; may be repeated.", metavar="NAME", show_default=False
        ),
    ] = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="JSON file with a precision for each layer.", show_default=False),
    ] = _DEFAULTS.plan,
    progress: ProgressOption = True,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Quantizes a model into a .pt2 archive that 'qcompile compile' takes for every target."""
    with guarded(traceback):
        config = CompileConfig(
            target=target,
            observer=observer,  # type: ignore[arg-type]  # CompileConfig checks it
            keep_float=tuple(keep_float or ()),
            plan=plan,
            progress=progress,
        )
        from qcompiler import report
        from qcompiler.driver.quantize import quantize_model

        result = quantize_model(model, config, calibration=calibration, output=output)
        if json:
            emit_json(result)
            return
        parts = [report.facts(f"Model {output}", {"size": report.size(output.stat().st_size)})]
        if result.float_operators:
            reasons = [(r.operator, r.place, r.reason) for r in result.float_operators]
            parts.append(report.table("Left in float", ["operator", "place", "reason"], reasons))
        report.show(*parts)
