"""``qcompile compile``: from a model to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.configuration import ALL, configured
from qcompiler.cli.options import (
    Json,
    Traceback,
    emit_json,
    guarded,
    left_in_float,
    optimizations,
)
from qcompiler.config import CompileConfig


@configured(*ALL)
def command(
    *,
    model: Annotated[
        str,
        typer.Argument(
            help="A .pt2 archive from torch.export.save, an .onnx file (float or QDQ), or "
            "package.module:function that returns a model and its example inputs.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write the bundle to.", show_default=False)],
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="An .npz with an array per model input, samples along the first axis. Needed unless the "
            "model is quantized already.",
            show_default=False,
        ),
    ] = None,
    config: CompileConfig,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Compiles a model into a bundle: an int8 shared library, its manifest, and the runtime."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.compile import compile_model

        result = compile_model(model, config, calibration=calibration, output=output)
        manifest = result.manifest
        if json:
            emit_json(result)
            return
        size = sum(file.stat().st_size for file in result.bundle.rglob("*") if file.is_file())
        tensorized = sum(layer.instruction is not None for layer in manifest.layers)
        values = {
            "target": manifest.target_name,
            "size": report.size(size),
            "layers": f"{len(manifest.layers)}, of them tensorized: {tensorized}",
            "schedules": report.schedules(
                [layer.schedule for layer in manifest.layers], manifest.tuned_threads
            ),
        }
        slow = [(layer.operator, layer.name, layer.reason) for layer in manifest.layers if layer.reason]
        parts = [report.facts(f"Bundle {output}", values)]
        parts += optimizations(manifest.optimizations)
        parts += left_in_float(manifest.float_operators)
        if slow:
            parts.append(report.table("Not tensorized", ["operator", "place", "reason"], slow))
        report.show(*parts)
