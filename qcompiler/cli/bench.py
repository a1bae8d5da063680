"""``qcompile bench``: latency, side by side with other engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.options import (
    Bundle,
    Json,
    ProgressOption,
    RequireSignature,
    SourceModel,
    Traceback,
    emit_json,
    guarded,
    integers,
    split,
)


def command(
    bundle: Bundle,
    threads: Annotated[
        str | None,
        typer.Option(help="Numbers of threads, as 1,2; all physical cores if not given.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            help="Other engines, such as torch,onnxruntime,openvino,openvino-fp32; they need --model and --calibration.",
            show_default=False,
        ),
    ] = None,
    model: SourceModel = None,
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="An .npz that the others are quantized with; its first sample is measured.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(help="Measurements of each engine.", min=1)] = 10,
    progress: ProgressOption = True,
    require_signature: RequireSignature = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Measures how long one run takes; the others are quantized from the same model and data."""
    with guarded(traceback):
        from rich.console import RenderableType

        from qcompiler import report
        from qcompiler.driver.bench import bench

        result = bench(
            bundle,
            threads=integers("--threads", threads),
            against=split("--against", against),
            model=model,
            calibration=calibration,
            rounds=rounds,
            require_signature=require_signature,
            progress=progress,
        )
        if json:
            emit_json(result)
            return
        rows = [
            (
                f"{timing.engine} {timing.version}".strip(),
                timing.dtype,
                str(timing.threads),
                report.milliseconds(timing.median),
                report.milliseconds(timing.fastest),
                "-" if timing.ratio is None else f"{timing.ratio:.2f}",
                timing.absent or "",
            )
            for timing in result.timings
        ]
        columns = ["engine", "dtype", ">threads", ">median", ">fastest", ">times ours", "absent because"]
        title = f"One run on {result.cpu}, {result.rounds} rounds"
        parts: list[RenderableType] = [report.table(title, columns, rows)]
        if result.busy:
            parts.append(
                f"The machine was not idle (other programs: {result.others:.2f} cores; the median round took "
                f"{result.spread:.2f} times the fastest): measure again."
            )
        report.show(*parts)
