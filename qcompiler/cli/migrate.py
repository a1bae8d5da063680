"""``qcompile migrate``: the same quantized model on another target."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompiler.cli.configuration import configured
from qcompiler.cli.options import Json, Limit, Threads, Traceback, emit_json, guarded, optimizations
from qcompiler.config import QUANTIZATION_OPTIONS, CompileConfig

if TYPE_CHECKING:
    from qcompiler.driver.migrate import Migration, Side


@configured(*QUANTIZATION_OPTIONS, "plan", "tuned", "log", "dim", "progress")
def command(
    *,
    source: Annotated[
        str,
        typer.Argument(
            help="A bundle, from which alone the new one is made; or a model, as 'compile' takes it.",
            show_default=False,
        ),
    ],
    to: Annotated[str, typer.Option(help="Target of the new bundle.", show_default=False)],
    output: Annotated[Path, typer.Option(help="Folder to write the new bundle to.", show_default=False)],
    origin: Annotated[
        str | None,
        typer.Option("--from", help="Target that it comes from; a bundle knows its own.", show_default=False),
    ] = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="For a float model: an .npz with an array per model input.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="An .npz to run both on; random inputs if not given.", show_default=False),
    ] = None,
    limit: Limit = None,
    threads: Threads = None,
    config: CompileConfig,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Recompiles for another target, runs both where they can run, and shows what changed."""
    with guarded(traceback):
        from qcompiler.driver.migrate import migrate
        from qcompiler.errors import VerificationError

        result = migrate(
            source,
            replace(config, target=to),
            output=output,
            origin=origin,
            calibration=calibration,
            data=data,
            threads=threads,
            limit=limit,
        )
        if json:
            emit_json(result)
        else:
            _show(result)
        if result.fault:
            raise VerificationError(result.fault)


def _ran(side: Side) -> str:
    if side.not_run is not None:
        return f"not run: {side.not_run}"
    return "on this machine" if side.emulated is None else f"emulated on {side.emulated}, no times"


def _show(result: Migration) -> None:
    from qcompiler import report

    before, after = result.before, result.after
    sides = [
        (
            side.target,
            side.instruction,
            side.activations,
            report.size(side.library_bytes),
            report.size(side.constants_bytes),
            report.milliseconds(side.seconds),
            _ran(side),
        )
        for side in (before, after)
    ]
    layers = [
        (
            layer.name,
            layer.operator,
            f"{layer.before or '-'} x {layer.before_count}" if layer.before else "-",
            f"{layer.after or '-'} x {layer.after_count}" if layer.after else "-",
            report.microseconds(layer.before_seconds),
            report.microseconds(layer.after_seconds),
        )
        for layer in result.layers
    ]
    outputs = [
        (
            out.name,
            "equal bits" if out.exact else "close",
            f"{out.elements:,}",
            f"{out.differing:,}",
            report.decibels(out.sqnr_db),
            "passed" if out.passed else "FAILED",
        )
        for out in result.outputs
    ]
    parts = [
        report.table(
            f"Bundle {result.bundle}",
            ["target", "instruction", "activations", ">library", ">constants", ">layers together", "run"],
            sides,
        ),
        report.table(
            "Layers",
            ["layer", "operator", before.target, after.target, f">{before.target}", f">{after.target}"],
            layers,
        ),
    ]
    facts = {
        f"only for {before.target}": ", ".join(result.only_before),
        f"only for {after.target}": ", ".join(result.only_after),
        "packed weights": "; ".join(f"{list(a)} -> {list(b)}" for a, b in dict.fromkeys(result.weights)),
    }
    parts.append(report.facts("Changed", {name: text or "-" for name, text in facts.items()}))
    if outputs:
        parts.append(
            report.table(
                f"Outputs of {result.samples} samples, both compared",
                ["output", "must be", ">elements", ">differing", ">SQNR", "result"],
                outputs,
            )
        )
    report.show(*parts, *optimizations(result.optimizations))
