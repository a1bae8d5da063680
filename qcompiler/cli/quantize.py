"""``qcompile quantize``: a quantized model as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.configuration import QUANTIZATION, configured
from qcompiler.cli.options import (
    Json,
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
        str,
        typer.Argument(
            help="A .pt2 archive, an .onnx file, or package.module:function, in float.", show_default=False
        ),
    ],
    calibration: Annotated[
        Path, typer.Option(help="An .npz with an array per model input.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="Archive (.pt2) to write.", show_default=False)],
    config: CompileConfig,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Quantizes a model into a .pt2 archive that 'qcompile compile' takes for every target."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.quantize import quantize_model

        result = quantize_model(model, config, calibration=calibration, output=output)
        if json:
            emit_json(result)
            return
        facts = report.facts(f"Model {output}", {"size": report.size(output.stat().st_size)})
        report.show(facts, *optimizations(result.optimizations), *left_in_float(result.float_operators))
