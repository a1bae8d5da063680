"""``qcompile verify``: a bundle against the reference interpreter, bit for bit."""

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
    Threads,
    Traceback,
    emit_json,
    guarded,
)


def command(
    bundle: Bundle,
    data: Annotated[Path, typer.Option(help="An .npz with an array per model input.", show_default=False)],
    threads: Threads = None,
    limit: Limit = None,
    progress: ProgressOption = True,
    require_signature: RequireSignature = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Compares every output with the reference interpreter's; exits with 1 if any differs."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.verify import verify
        from qcompiler.errors import VerificationError

        result = verify(
            bundle,
            data,
            threads=threads,
            limit=limit,
            require_signature=require_signature,
            progress=progress,
        )
        if json:
            emit_json(result)
        else:
            rows = [
                (
                    out.name,
                    "equal bits" if out.exact else "close",
                    f"{out.elements:,}",
                    f"{out.differing:,}",
                    f"{out.largest_difference:.3g}",
                    report.decibels(out.sqnr_db),
                    "passed" if out.passed else "FAILED",
                )
                for out in result.outputs
            ]
            where = f", emulated on {result.emulated}" if result.emulated else ""
            title = f"{result.samples} samples against the reference{where}"
            columns = ["output", "must be", ">elements", ">differing", ">largest", ">SQNR", "result"]
            report.show(report.table(title, columns, rows))
        if result.fault:
            raise VerificationError(result.fault)
