"""``qcompile profile``: the time of every operator, or an estimate of every inner loop."""

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
    static: Annotated[
        bool,
        typer.Option(
            "--static",
            help="Estimate the inner loops from the machine code, for a bundle of any architecture; count the executed "
            "instructions where an emulator is installed.",
        ),
    ] = False,
    count: Annotated[
        bool,
        typer.Option(
            help="With --static: emulate a run to count its instructions, where an emulator is installed."
        ),
    ] = True,
    require_signature: RequireSignature = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Shows time, GMAC/s and share of the chip's peak for every operator."""
    with guarded(traceback):
        if static:
            _show_static(
                bundle, require_signature, count=count, data=data, threads=threads, peak=peak, json=json
            )
            return
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


def _show_static(
    bundle: Path, require_signature: Path | None, *, count: bool, data: Path | None, threads: int | None, peak: float | None, json: bool
) -> None:  # fmt: skip
    from qcompiler import report
    from qcompiler.driver.static_profile import static_profile
    from qcompiler.errors import ConfigError

    for option, given in (("--data", data), ("--threads", threads), ("--peak", peak)):
        if given is not None:
            raise ConfigError(
                f"{option} is for a run that is measured, and --static measures none; leave one of them out"
            )
    result = static_profile(bundle, count=count, require_signature=require_signature)
    if json:
        emit_json(result)
        return
    rows = [
        (
            row.name,
            row.operator,
            row.instruction,
            f"{row.macs / 1e6:.1f}",
            f"{row.loop_instructions}",
            f"{row.loop_macs}",
            report.percent(row.bound_share),
            "-" if row.macs_per_cycle is None else f"{row.macs_per_cycle:.1f}",
            report.percent(row.peak_share),
            "-" if row.executed is None else f"{row.executed / 1e6:.2f}",
        )
        for row in result.rows
    ]
    columns = [
        "name", "operator", "instruction", ">10^6 MAC", ">instructions", ">MAC", ">bound", ">MAC/cycle", ">of the peak",
        ">10^6 executed",
    ]  # fmt: skip
    methods = sorted({row.method for row in result.rows if row.method is not None})
    how = (
        f"MAC/cycle: {', '.join(methods)}."
        if methods
        else "MAC/cycle: needs llvm-mca 17 or later on the PATH."
    )
    report.show(
        report.table(f"Inner loops of {bundle}, one turn each, estimated", columns, rows),
        f"Peak of {result.target}: {result.peak} MAC/cycle and core. Bound: the busiest of the core's units, were it "
        f"never to wait. {how}",
        "An estimate, not a measurement: every load is taken for a hit in the level-1 cache.",
        "Executed instructions: "
        + ("" if result.executed is None else f"{result.executed / 1e6:.2f} million in all kernels; ")
        + f"{result.counting}.",
        *(
            [f"Without a loop, and so without a row: {', '.join(result.without_loop)}."]
            if result.without_loop
            else []
        ),
    )
