"""``qcompile search``: a precision for each layer."""

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
    from qcompiler.driver.search.result import Point, SearchResult


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
    precisions: Annotated[
        str | None,
        typer.Option(
            help="What to choose from, such as int8,bf16,fp32; int8, fp32 and what else the chip multiplies if not given.",
            show_default=False,
        ),
    ] = None,
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
        from qcompiler.driver.search.result import SearchConfig
        from qcompiler.driver.search.search import search

        result = search(
            model,
            config,
            SearchConfig(
                max_drop=max_drop,
                max_latency=bound,
                threads=threads,
                points=points,
                limit=limit,
                precisions=None if precisions is None else tuple(precisions.split(",")),  # type: ignore[arg-type]
            ),
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

    tried = list(result.uniform_seconds)
    noisy = [p for p in tried if p != "fp32"]
    what = "drop" if result.criterion is None else f"drop ({result.criterion})"
    layers = [
        (
            layer.name,
            layer.kind,
            *(report.decibels(layer.sqnr_db[p]) if p in layer.sqnr_db else "" for p in noisy),
            report.percent(layer.drop["int8"]),
            *(report.microseconds(layer.seconds[p]) if p in layer.seconds else "" for p in tried),
            layer.precision,
        )
        for layer in result.layers
    ]
    points = [
        (
            _counts(result, p),
            report.milliseconds(p.seconds),
            report.decibels(p.sqnr_db),
            report.percent(p.drop),
            ", ".join(list(p.float_layers)[:3]) + (", …" if len(p.float_layers) > 3 else "") or "-",
        )
        for p in result.front
    ]
    attempts = [
        (
            _counts(result, a.promised),
            report.milliseconds(a.promised.seconds),
            report.milliseconds(a.seconds),
            report.percent(a.promised.drop),
            report.percent(a.drop),
            report.decibels(a.sqnr_db),
            a.missed or "chosen",
        )
        for a in result.attempts
    ]
    counts = ">" + " / ".join(tried)
    report.show(
        report.table(
            "Layers: noise of each alone, and times",
            [
                "layer",
                "kind",
                *(f">SQNR {p}" for p in noisy),
                f">{what} int8",
                *(f">{p}" for p in tried),
                "precision",
            ],
            layers,
        ),
        report.table(
            "Front, as promised",
            [counts, ">latency", ">SQNR", f">{what}", "in float"],
            points,
        ),
        report.table(
            "Plans, compiled and measured",
            [counts, ">promised", ">measured", f">promised {what}", ">measured", ">SQNR", "result"],
            attempts,
        ),
        *optimizations(result.optimizations),
        report.facts(
            f"Plan {result.plan}",
            {
                **{f"all {p}": report.milliseconds(time) for p, time in result.uniform_seconds.items()},
                "float top-1": report.percent(result.float_top1),
                "samples": str(result.samples),
                "threads": str(result.threads),
            },
        ),
    )
    report.show(*result.remarks)


def _counts(result: SearchResult, point: Point) -> str:
    """How many layers a plan has in each precision that was tried."""
    chosen = list(point.float_layers.values())
    return " / ".join(
        str(len(result.layers) - len(chosen) if p == "int8" else chosen.count(p))
        for p in result.uniform_seconds
    )


def _plot(result: SearchResult, path: Path) -> None:
    from qcompiler.report.front_plot import Mark, plot_front

    chosen = result.chosen

    def label(point: Point) -> str:
        return _counts(result, point).replace(" ", "")

    plot_front(
        [Mark(p.seconds, p.sqnr_db, p.drop, label(p)) for p in result.front],
        Mark(chosen.seconds, chosen.sqnr_db, chosen.drop, label(chosen.promised)),
        path,
        title=f"Plans of {len(result.layers)} layers; numbers: layers in {'/'.join(result.uniform_seconds)}; "
        f"{result.samples} samples, threads: {result.threads}",
        criterion=result.criterion,
    )
