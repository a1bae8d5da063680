"""``qcompile compile``: from a model to a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer

from qcompiler.cli.options import (
    CalibrationMethodOption,
    Dim,
    EffortOption,
    Json,
    KeepFloatOption,
    PercentileOption,
    ProgressOption,
    SymmetricOption,
    Traceback,
    emit_json,
    guarded,
    left_in_float,
)
from qcompiler.config import CompileConfig, Precision
from qcompiler.errors import ConfigError

_DEFAULTS = CompileConfig()


def _assignment(text: str) -> tuple[str, Precision]:
    name, equals, precision = text.rpartition("=")
    if not equals or not name:
        raise ConfigError(f"layer_precision is {text!r}; give NAME=PRECISION, as layer1.0.conv1=fp32")
    return name, precision  # type: ignore[return-value]  # CompileConfig checks it


def command(
    model: Annotated[
        str,
        typer.Argument(
            help="A .pt2 archive from torch.export.save, an .onnx file (float or QDQ), or "
            "package.module:function that returns a model and its example inputs.",
            show_default=False,
        ),
    ],
    output: Annotated[Path, typer.Option(help="Folder to write the bundle to.", show_default=False)],
    calibration: Annotated[
        Path | None,
        typer.Option(
            help="An .npz with an array per model input, samples along the first axis. Needed unless the "
            "model is quantized already.",
            show_default=False,
        ),
    ] = None,
    target: Annotated[
        str, typer.Option(help="Chip to compile for (qcompile targets); 'native' is this machine's.")
    ] = _DEFAULTS.target,
    precision: Annotated[
        str,
        typer.Option(
            help=f"What layers compute in: {', '.join(get_args(Precision))}; the float ones need no calibration."
        ),
    ] = _DEFAULTS.precision,
    layer_precision: Annotated[
        list[str] | None,
        typer.Option(
            help="Precision of one operator or module, before --precision; may be repeated.",
            metavar="NAME=PRECISION",
            show_default=False,
        ),
    ] = None,
    weights_only: Annotated[
        bool,
        typer.Option(
            help="Linear layers that stay in float have int8 weights; with --precision fp32, all of them."
        ),
    ] = _DEFAULTS.weights_only,
    effort: EffortOption = _DEFAULTS.effort,
    calibration_method: CalibrationMethodOption = _DEFAULTS.calibration_method,
    equalize: Annotated[
        bool | None,
        typer.Option(help="Scale the weights of two layers so that the channels between have ranges alike."),
    ] = _DEFAULTS.equalize,
    smooth: Annotated[
        bool | None,
        typer.Option(help="Move ranges from linear layers' inputs into their weights (SmoothQuant)."),
    ] = _DEFAULTS.smooth,
    adaptive_rounding: Annotated[
        bool | None, typer.Option(help="Round weights such that the layers' outputs change least.")
    ] = _DEFAULTS.adaptive_rounding,
    bias_correction: Annotated[
        str | None,
        typer.Option(
            help="Take the mean error of layers back: 'empirical' on the data, 'fast' from batch norms, 'off'.",
            show_default=False,
        ),
    ] = _DEFAULTS.bias_correction,
    percentile: PercentileOption = _DEFAULTS.percentile,
    averaging_constant: Annotated[
        float, typer.Option(help="For 'moving-average': weight of the newest batch.")
    ] = _DEFAULTS.averaging_constant,
    symmetric_activations: SymmetricOption = _DEFAULTS.symmetric_activations,
    skip_first: Annotated[
        bool, typer.Option(help="Leave the first convolution or linear layer in float.")
    ] = _DEFAULTS.skip_first,
    skip_last: Annotated[
        bool, typer.Option(help="Leave the last convolution or linear layer in float.")
    ] = _DEFAULTS.skip_last,
    keep_float: KeepFloatOption = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            help="JSON file with a precision for each layer, as 'qcompile search' writes it.",
            show_default=False,
        ),
    ] = _DEFAULTS.plan,
    gate: Annotated[
        bool,
        typer.Option(help="Time each layer in int8 and in float on this machine, and keep the faster."),
    ] = _DEFAULTS.gate,
    embed_reference: Annotated[
        bool, typer.Option(help="Store what 'qcompile verify' compares with in the bundle.")
    ] = _DEFAULTS.embed_reference,
    dump_ir: Annotated[
        Path | None,
        typer.Option(help="Folder that gets one numbered file a pass.", show_default=False),
    ] = _DEFAULTS.dump_ir,
    tuned: Annotated[
        bool, typer.Option("--tuned/--no-log", help="Use the tuning logs that come with the compiler.")
    ] = _DEFAULTS.tuned,
    log: Annotated[
        Path | None,
        typer.Option(help="Folder with a tuning log to use besides; it comes first.", show_default=False),
    ] = _DEFAULTS.log,
    dim: Dim = None,
    progress: ProgressOption = True,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Compiles a model into a bundle: an int8 shared library, its manifest, and the runtime."""
    with guarded(traceback):
        config = CompileConfig(
            target=target,
            precision=precision,  # type: ignore[arg-type]  # CompileConfig checks it
            layer_precision=dict(_assignment(text) for text in layer_precision or ()),
            weights_only=weights_only,
            effort=effort,  # type: ignore[arg-type]  # CompileConfig checks it
            calibration_method=calibration_method,  # type: ignore[arg-type]  # the same
            equalize=equalize,
            smooth=smooth,
            adaptive_rounding=adaptive_rounding,
            bias_correction=bias_correction,  # type: ignore[arg-type]  # the same
            percentile=percentile,
            averaging_constant=averaging_constant,
            symmetric_activations=symmetric_activations,
            skip_first=skip_first,
            skip_last=skip_last,
            keep_float=tuple(keep_float or ()),
            plan=plan,
            gate=gate,
            embed_reference=embed_reference,
            dump_ir=dump_ir,
            tuned=tuned,
            log=log,
            dim=tuple(dim or ()),
            progress=progress,
        )
        from qcompiler import report
        from qcompiler.driver.compile import compile_model

        result = compile_model(model, config, calibration=calibration, output=output)
        manifest = result.manifest
        if json:
            emit_json(result)
            return
        size = sum(file.stat().st_size for file in result.bundle.rglob("*") if file.is_file())
        tensorized = sum(layer.instruction is not None for layer in manifest.layers)
        values = {
            "target": manifest.target_name,
            "size": report.size(size),
            "layers": f"{len(manifest.layers)}, of them tensorized: {tensorized}",
            "schedules": report.schedules(
                [layer.schedule for layer in manifest.layers], manifest.tuned_threads
            ),
        }
        slow = [(layer.operator, layer.name, layer.reason) for layer in manifest.layers if layer.reason]
        parts = [report.facts(f"Bundle {output}", values)]
        if manifest.optimizations:
            parts.append(report.optimizations(manifest.optimizations))
        parts += left_in_float(manifest.float_operators)
        if slow:
            parts.append(report.table("Not tensorized", ["operator", "place", "reason"], slow))
        report.show(*parts)
