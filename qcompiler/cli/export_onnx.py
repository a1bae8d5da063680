"""``qcompile export-onnx``: from a model to a QDQ ONNX model."""

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
    model: Annotated[str, typer.Argument(help="A model, as for 'qcompile compile'.", show_default=False)],
    output: Annotated[Path, typer.Option(help="File to write, as model.onnx.", show_default=False)],
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="An .npz with an array per model input, as for 'qcompile compile'. Not needed for a quantized model.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            help="onnxruntime, or tensorrt: int8 activations with zero point 0, for which a float model is quantized "
            "with --symmetric-activations."
        ),
    ] = "onnxruntime",
    target: Annotated[
        str, typer.Option(help="Chip whose rules say what is quantized (qcompile targets).")
    ] = _DEFAULTS.target,
    effort: EffortOption = _DEFAULTS.effort,
    calibration_method: CalibrationMethodOption = _DEFAULTS.calibration_method,
    symmetric_activations: SymmetricOption = _DEFAULTS.symmetric_activations,
    keep_float: KeepFloatOption = None,
    dim: Dim = None,
    progress: ProgressOption = True,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Writes a quantized model as a QDQ ONNX model that ONNX Runtime or TensorRT runs."""
    with guarded(traceback):
        config = CompileConfig(
            target=target,
            effort=effort,  # type: ignore[arg-type]  # CompileConfig checks it
            calibration_method=calibration_method,  # type: ignore[arg-type]  # the same
            symmetric_activations=symmetric_activations,
            keep_float=tuple(keep_float or ()),
            dim=tuple(dim or ()),
            progress=progress,
        )
        from qcompiler import report
        from qcompiler.driver.onnx_model import export_onnx

        result = export_onnx(
            model,
            config,
            calibration=calibration,
            output=output,
            engine=engine,  # type: ignore[arg-type]  # export_onnx checks it
        )
        if json:
            emit_json(result)
            return
        values = {
            "size": report.size(result.size),
            "opset": str(result.opset),
            "layers with 8-bit weights": str(result.layers),
            "nodes": ", ".join(f"{name} {count}" for name, count in result.operators.items()),
        }
        facts = report.facts(f"ONNX model {result.path}", values)
        report.show(facts, *left_in_float(result.float_operators))
