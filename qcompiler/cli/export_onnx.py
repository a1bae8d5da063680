"""``qcompile export-onnx``: from a model to a QDQ ONNX model."""

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
    config: CompileConfig,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Writes a quantized model as a QDQ ONNX model that ONNX Runtime or TensorRT runs."""
    with guarded(traceback):
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
        report.show(facts, *optimizations(result.optimizations), *left_in_float(result.float_operators))
