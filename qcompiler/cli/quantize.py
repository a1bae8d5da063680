"""``qcompile quantize``: a quantized model as a file."""

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
    ProgressOption,
    SymmetricOption,
    Traceback,
    emit_json,
    guarded,
    left_in_float,
)
from qcompiler.config import CompileConfig

_DEFAULTS = CompileConfig()


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="A .pt2 archive, an .onnx file, or package.module:function, in float.", show_default=False
        ),
    ],
    calibration: Annotated[
        Path, typer.Option(help="An .npz with an array per model input.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="Archive (.pt2) to write.", show_default=False)],
    target: Annotated[
        str, typer.Option(help="Chip whose quantization rules count; those of all known ones are the same.")
    ] = _DEFAULTS.target,
    effort: EffortOption = _DEFAULTS.effort,
    calibration_method: CalibrationMethodOption = _DEFAULTS.calibration_method,
    symmetric_activations: SymmetricOption = _DEFAULTS.symmetric_activations,
    keep_float: KeepFloatOption = None,
    plan: Annotated[
        Path | None,
        typer.Option(help="JSON file with a precision for each layer.", show_default=False),
    ] = _DEFAULTS.plan,
    dim: Dim = None,
    progress: ProgressOption = True,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Quantizes a model into a .pt2 archive that 'qcompile compile' takes for every target."""
    with guarded(traceback):
        config = CompileConfig(
            target=target,
            effort=effort,  # type: ignore[arg-type]  # CompileConfig checks it
            calibration_method=calibration_method,  # type: ignore[arg-type]  # the same
            keep_float=tuple(keep_float or ()),
            plan=plan,
            symmetric_activations=symmetric_activations,
            dim=tuple(dim or ()),
            progress=progress,
        )
        from qcompiler import report
        from qcompiler.driver.quantize import quantize_model

        result = quantize_model(model, config, calibration=calibration, output=output)
        if json:
            emit_json(result)
            return
        facts = report.facts(f"Model {output}", {"size": report.size(output.stat().st_size)})
        report.show(facts, *left_in_float(result.float_operators))
