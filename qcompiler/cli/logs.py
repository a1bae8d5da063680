"""``qcompile logs``: lists, merges, prunes and exports tuning logs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qcompiler.cli.options import Json, Traceback, emit_json, guarded

app = typer.Typer(
    help="Lists, merges, prunes and exports tuning logs.", rich_markup_mode=None, no_args_is_help=True
)

Log = Annotated[Path, typer.Argument(help="Folder of a tuning log.", show_default=False)]
Output = Annotated[Path, typer.Option(help="New folder to write.", show_default=False)]


@app.command("list")
def list_command(log: Log, json: Json = False, traceback: Traceback = False) -> None:
    """Shows the kernels of a log and what tuning gained."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.tuning.manage import listing

        result = listing(log)
        if json:
            emit_json(result)
            return
        threads = result.key.threads
        rows = [
            (
                kernel.name,
                str(kernel.records),
                report.each(kernel.default_seconds, threads),
                report.each(kernel.seconds, threads),
                report.percent(kernel.gain),
            )
            for kernel in result.kernels
        ]
        at = " / ".join(map(str, threads))
        columns = ["kernel", ">records", f">default at {at} threads", f">best at {at} threads", ">gain"]
        facts = {
            "target": str(result.key.target["name"]),
            "schedule version": str(result.key.schedule_version),
            "TVM": result.key.tvm,
            "threads": " ".join(map(str, threads)),
            "records": str(sum(kernel.records for kernel in result.kernels)),
        }
        report.show(report.table("Kernels", columns, rows), report.facts(f"Log {log}", facts), *result.faults)


@app.command("merge")
def merge_command(
    log: Annotated[
        list[Path], typer.Argument(help="Folders of tuning logs for one target.", show_default=False)
    ],
    output: Output,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Writes a new log with everything that some logs hold."""
    with guarded(traceback):
        from qcompiler.driver.tuning.manage import merge

        _show(merge(log, output), json)


@app.command("prune")
def prune_command(
    log: Log,
    keep: Annotated[int, typer.Option(help="Schedules to keep of each kernel.", min=1)] = 10,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Keeps the fastest schedules of each kernel, and drops lines that cannot be read."""
    with guarded(traceback):
        from qcompiler.driver.tuning.manage import prune

        _show(prune(log, keep), json)


@app.command("export")
def export_command(log: Log, output: Output, json: Json = False, traceback: Traceback = False) -> None:
    """Writes a new, small log with the schedule in use of each kernel."""
    with guarded(traceback):
        from qcompiler.driver.tuning.manage import export

        _show(export(log, output), json)


def _show(written: Any, json: bool) -> None:
    from qcompiler import report

    if json:
        emit_json(written)
        return
    facts = {"kernels": str(written.kernels), "records": str(written.records)}
    report.show(
        report.facts(f"Log {written.folder}", facts), *(f"left out: {fault}" for fault in written.faults)
    )
