"""``qcompile search``: which layers in int8 and which in float."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qcompiler.cli.configuration import QUANTIZATION, configured
from qcompiler.cli.options import (
    Json,
    Limit,
    Threads,
    Traceback,
    emit_json,
    guarded,
    optimizations,
    seconds,
)
from qcompiler.config import CompileConfig

if TYPE_CHECKING:
    from qcompiler.driver.search.search import SearchResult


@configured(*QUANTIZATION, "dim", "progress")
def command(
    *,
    model: Annotated[
        str,
        typer.Argument(help="A .pt2 archive or package.module:function, in float.", show_default=False),
    ],
    calibration: Annotated[
        Path, typer.Option(help="An .npz with an array per model input.", show_default=False)
    ],
    output: Annotated[Path, typer.Option(help="File to write the plan to.", show_default=False)],
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Percentage points that the plan may lose: of top-1 accuracy with labels, else of predictions "
            "that are the float model's.",
            show_default=False,
        ),
    ] = None,
    max_latency: Annotated[
        str | None,
        typer.Option(help="What a run may take, such as 3ms or 250us.", show_default=False),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="An .npz to measure accuracy on, with 'labels'; the calibration data if not given.",
            show_default=False,
        ),
    ] = None,
    limit: Limit = None,
    config: CompileConfig,
    threads: Threads = None,
    points: Annotated[int, typer.Option(help="Plans of the front, about.")] = 16,
    plot: Annotated[
        Path | None,
        typer.Option(help="Picture of the front to write (.png, .svg or .pdf).", show_default=False),
    ] = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Searches a precision for each layer, and measures whether the plan keeps its promises."""
    with guarded(traceback):
        bound = seconds("--max-latency", max_latency)
        from qcompiler.driver.search.search import SearchConfig, search

        result = search(
            model,
            config,
            SearchConfig(max_drop=max_drop, max_latency=bound, threads=threads, points=points, limit=limit),
            calibration=calibration,
            output=output,
            data=data,
        )
        if plot is not None:
            _plot(result, plot)
        if json:
            emit_json(result)
            return
        _show(result)


def _show(result: SearchResult) -> None:
    from qcompiler import report

    layers = [
        (
            layer.name,
            layer.kind,
            report.decibels(layer.sqnr_db),
            report.percent(layer.drop),
            report.microseconds(layer.int8_seconds),
            report.microseconds(layer.fp32_seconds),
            layer.precision,
        )
        for layer in result.layers
    ]
    points = [
        (
            f"{len(result.layers) - len(p.float_layers)} / {len(p.float_layers)}",
            report.milliseconds(p.seconds),
            report.decibels(p.sqnr_db),
            report.percent(p.drop),
            ", ".join(p.float_layers[:3]) + (", …" if len(p.float_layers) > 3 else "") or "-",
        )
        for p in result.front
    ]
    attempts = [
        (
            f"{len(result.layers) - len(a.promised.float_layers)} / {len(a.promised.float_layers)}",
            report.milliseconds(a.promised.seconds),
            report.milliseconds(a.seconds),
            report.percent(a.promised.drop),
            report.percent(a.drop),
            report.decibels(a.sqnr_db),
            a.missed or "chosen",
        )
        for a in result.attempts
    ]
    what = "drop" if result.criterion is None else f"drop ({result.criterion})"
    report.show(
        report.table(
            "Layers, each alone in int8",
            ["layer", "kind", ">SQNR", f">{what}", ">int8", ">fp32", "precision"],
            layers,
        ),
        report.table(
            "Front, as promised",
            [">int8 / float", ">latency", ">SQNR", f">{what}", "in float"],
            points,
        ),
        report.table(
            "Plans, compiled and measured",
            [">int8 / float", ">promised", ">measured", f">promised {what}", ">measured", ">SQNR", "result"],
            attempts,
        ),
        *optimizations(result.optimizations),
        report.facts(
            f"Plan {result.plan}",
            {
                "all int8": report.milliseconds(result.int8_seconds),
                "all float": report.milliseconds(result.fp32_seconds),
                "float top-1": report.percent(result.float_top1),
                "samples": str(result.samples),
                "threads": str(result.threads),
            },
        ),
    )


def _plot(result: SearchResult, path: Path) -> None:
    from qcompiler.report.front_plot import Mark, plot_front

    chosen = result.chosen
    plot_front(
        [Mark(p.seconds, p.sqnr_db, p.drop, str(len(p.float_layers))) for p in result.front],
        Mark(chosen.seconds, chosen.sqnr_db, chosen.drop, str(len(chosen.promised.float_layers))),
        path,
        title=f"Plans of {len(result.layers)} layers; numbers: layers in float; {result.samples} samples, "
        f"threads: {result.threads}",
        criterion=result.criterion,
    )
