"""``qcompile tune``: searches schedules for a model's kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.configuration import QUANTIZATION, configured
from qcompiler.cli.options import Json, Traceback, emit_json, guarded, integers, optimizations
from qcompiler.config import CompileConfig, TuneConfig

_DEFAULTS = TuneConfig()


@configured(*QUANTIZATION, "plan", "dim", "progress")
def command(
    *,
    model: Annotated[
        str,
        typer.Argument(
            help="A model, as for 'qcompile compile'; a quantized .pt2 needs no data.", show_default=False
        ),
    ],
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="An .npz with an array per model input, as for 'qcompile compile'.", show_default=False
        ),
    ] = None,
    config: CompileConfig,
    trials: Annotated[int, typer.Option(help="Schedules to measure, at most.")] = _DEFAULTS.trials,
    minutes: Annotated[
        float | None, typer.Option(help="Minutes to search, at most.", show_default=False)
    ] = _DEFAULTS.minutes,
    layers: Annotated[
        str | None,
        typer.Option(
            help="Only layers whose name matches, as 'layer1.*'.", metavar="PATTERN", show_default=False
        ),
    ] = _DEFAULTS.layers,
    jobs: Annotated[int, typer.Option(help="Schedules to build at once.")] = _DEFAULTS.jobs,
    threads: Annotated[
        str | None,
        typer.Option(
            help="Numbers of threads to measure at, as 1,2; 1 and all cores if not given.", show_default=False
        ),
    ] = None,
    log: Annotated[
        Path | None,
        typer.Option(help="Folder of the log; ./tuning_logs/TARGET if not given.", show_default=False),
    ] = _DEFAULTS.log,
    min_gain: Annotated[
        float,
        typer.Option(help="End when less than this share of the model's time is expected to be gained."),
    ] = _DEFAULTS.min_gain,
    batch: Annotated[int, typer.Option(help="Schedules of a kernel in one round.")] = _DEFAULTS.batch,
    seed: Annotated[int, typer.Option(help="Seed of the search.")] = _DEFAULTS.seed,
    rpc: Annotated[
        str | None,
        typer.Option(
            help="Measure on devices of this TVM RPC tracker.", metavar="HOST:PORT", show_default=False
        ),
    ] = _DEFAULTS.rpc,
    key: Annotated[
        str | None, typer.Option(help="The devices' key at the tracker.", show_default=False)
    ] = _DEFAULTS.key,
    rpc_timeout: Annotated[
        float, typer.Option(help="Seconds that a device has for one schedule.")
    ] = _DEFAULTS.rpc_timeout,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Searches schedules for a model's kernels, and keeps what it measures for every later compile."""
    with guarded(traceback):
        tuning = TuneConfig(
            trials=trials,
            minutes=minutes,
            layers=layers,
            jobs=jobs,
            threads=integers("--threads", threads),
            log=log,
            min_gain=min_gain,
            batch=batch,
            seed=seed,
            rpc=rpc,
            key=key,
            rpc_timeout=rpc_timeout,
        )
        from qcompiler import report
        from qcompiler.driver.tuning.model import tune_model

        result = tune_model(
            model, config, tuning, calibration=calibration, say=lambda line: print(line, file=sys.stderr)
        )
        if json:
            emit_json(result)
            return
        rows = [
            (
                kernel.name,
                str(len(kernel.layers)),
                str(kernel.trials),
                report.each(kernel.default_seconds, result.threads),
                report.each(kernel.seconds, result.threads),
                report.percent(kernel.gain) if kernel.gain else "default kept",
            )
            for kernel in result.kernels
        ]
        at = " / ".join(map(str, result.threads))
        columns = [
            "kernel",
            ">layers",
            ">trials",
            f">default at {at} threads",
            f">best at {at} threads",
            ">gain",
        ]
        report.show(
            report.table(f"Tuned for {result.target}", columns, rows),
            *optimizations(result.optimizations),
            report.facts(
                f"Log {result.log}",
                {
                    "trials": f"{result.trials}, of them failed: {result.failed}, with a wrong output: {result.wrong}",
                    "measured before": str(result.reused),
                    "time": f"{result.seconds:.0f} s",
                    "gain of these kernels together": report.percent(result.gain),
                    "ended because": result.reason,
                },
            ),
            f"Compile with it: qcompile compile MODEL --log {result.log} ...",
        )
