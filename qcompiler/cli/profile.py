"""``qcompile profile``: the time of every operator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.options import Bundle, Json, RequireSignature, Threads, Traceback, emit_json, guarded


def command(
    bundle: Bundle,
    data: Annotated[
        Path | None,
        typer.Option(help="An .npz whose first sample is run; zeros if not given.", show_default=False),
    ] = None,
    threads: Threads = None,
    repeat: Annotated[int, typer.Option(help="Runs to average over.", min=1)] = 50,
    peak: Annotated[
        float | None,
        typer.Option(
            metavar="GMACS",
            help="Peak of the chip in 10^9 multiply-accumulates a second, all threads together; "
            "from the target and the measured clock if not given.",
            show_default=False,
        ),
    ] = None,
    require_signature: RequireSignature = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Shows time, GMAC/s and share of the chip's peak for every operator."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.profile import profile

        result = profile(
            bundle,
            data=data,
            threads=threads,
            repeat=repeat,
            peak=None if peak is None else peak * 1e9,
            require_signature=require_signature,
        )
        if json:
            emit_json(result)
            return
        totals = [result.total] if result.dense is None else [result.dense, result.total]
        rows = [
            (
                row.name,
                row.operator,
                row.dtype,
                report.milliseconds(row.seconds),
                f"{100 * row.seconds / result.total.seconds:.1f} %" if result.total.seconds else "-",
                report.gmacs(row.macs_per_second),
                report.percent(row.peak_share),
            )
            for row in (*result.rows, *totals)
        ]
        columns = ["name", "operator", "dtype", ">time", ">of the run", ">rate", ">of the peak"]
        report.show(
            report.table(f"One run of {bundle} with {result.threads} threads", columns, rows),
            f"Peak: {report.gmacs(result.peak)} ({result.peak_source}).",
        )
