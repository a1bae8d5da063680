"""``qcompile run``: runs a bundle on arrays from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.options import (
    Bundle,
    Json,
    RequireSignature,
    Threads,
    Traceback,
    emit_json,
    guarded,
    shape,
)


def command(
    bundle: Bundle,
    input: Annotated[
        Path, typer.Option("--input", help="An .npz with an array per model input.", show_default=False)
    ],
    output: Annotated[
        Path | None, typer.Option(help="Write the outputs into this .npz.", show_default=False)
    ] = None,
    threads: Threads = None,
    require_signature: RequireSignature = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Runs a bundle on every sample of a file."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.run import run

        result = run(bundle, input, output, threads=threads, require_signature=require_signature)
        if json:
            emit_json(result)
            return
        rows = [
            (
                out.name,
                out.dtype,
                shape(out.shape),
                f"{out.minimum:.6g}",
                f"{out.maximum:.6g}",
                f"{out.mean:.6g}",
            )
            for out in result.outputs
        ]
        columns = ["output", "dtype", "shape", ">minimum", ">maximum", ">mean"]
        title = f"{result.samples} samples in {result.runs} runs"
        where = f"Outputs are in {output}." if output else "Give --output FILE.npz to keep the outputs."
        report.show(report.table(title, columns, rows), where)
