"""Options of :class:`~qcompiler.config.CompileConfig` at the command line, each defined once for all commands.

A command takes a parameter ``config: CompileConfig`` and says which of the options it has:

    @configured(*QUANTIZATION, "dim")
    def command(model: ..., config: CompileConfig, json: Json = False, traceback: Traceback = False) -> None:

Typer sees the options in the place of ``config``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from qcompiler.cli.options import ProgressOption, guarded
from qcompiler.config import QUANTIZATION_OPTIONS, CalibrationMethod, CompileConfig, Precision
from qcompiler.errors import ConfigError

QUANTIZATION = ("target", *QUANTIZATION_OPTIONS)
"""What every command that quantizes takes."""

_OPTIONS: dict[str, Any] = {
    "target": Annotated[
        str, typer.Option(help="Chip to compile for (qcompile targets); 'native' is this machine's.")
    ],
    "precision": Annotated[
        str,
        typer.Option(
            help=f"What layers compute in: {', '.join(get_args(Precision))}; the float ones need no calibration."
        ),
    ],
    "layer_precision": Annotated[
        list[str] | None,
        typer.Option(
            help="Precision of one operator or module, before --precision; may be repeated.",
            metavar="NAME=PRECISION",
            show_default=False,
        ),
    ],
    "weights_only": Annotated[
        bool,
        typer.Option(
            help="Linear layers that stay in float have int8 weights; with --precision fp32, all of them."
        ),
    ],
    "effort": Annotated[
        str,
        typer.Option(
            help="What is done to keep the accuracy: 'fast' takes the extremes as ranges; 'balanced' chooses ranges "
            "and corrects biases; 'max' also equalizes, smooths and rounds adaptively. Options for one of these "
            "override it."
        ),
    ],
    "calibration_method": Annotated[
        str | None,
        typer.Option(
            "--calibration-method",
            "--observer",
            help=f"How activation ranges are found: {', '.join(get_args(CalibrationMethod))}; 'auto' is the best of "
            "the others for each tensor, by measured error. --observer is the option's former name.",
            show_default=False,
        ),
    ],
    "equalize": Annotated[
        bool | None,
        typer.Option(help="Scale the weights of two layers so that the channels between have ranges alike."),
    ],
    "smooth": Annotated[
        bool | None,
        typer.Option(help="Move ranges from linear layers' inputs into their weights (SmoothQuant)."),
    ],
    "adaptive_rounding": Annotated[
        bool | None, typer.Option(help="Round weights such that the layers' outputs change least.")
    ],
    "bias_correction": Annotated[
        str | None,
        typer.Option(
            help="Take the mean error of layers back: 'empirical' on the data, 'fast' from batch norms, 'off'.",
            show_default=False,
        ),
    ],
    "percentile": Annotated[
        float, typer.Option(help="For 'percentile': share of values inside the range, in percent.")
    ],
    "averaging_constant": Annotated[
        float, typer.Option(help="For 'moving-average': weight of the newest batch.")
    ],
    "symmetric_activations": Annotated[
        bool,
        typer.Option(help="Quantize activations with the zero point in the middle, as TensorRT needs it."),
    ],
    "skip_first": Annotated[bool, typer.Option(help="Leave the first convolution or linear layer in float.")],
    "skip_last": Annotated[bool, typer.Option(help="Leave the last convolution or linear layer in float.")],
    "keep_float": Annotated[
        list[str] | None,
        typer.Option(
            help="Operator or module to leave in float; may be repeated.", metavar="NAME", show_default=False
        ),
    ],
    "plan": Annotated[
        Path | None,
        typer.Option(
            help="JSON file with a precision for each layer, as 'qcompile search' writes it.",
            show_default=False,
        ),
    ],
    "gate": Annotated[
        bool,
        typer.Option(help="Time each layer in int8 and in float on this machine, and keep the faster."),
    ],
    "embed_reference": Annotated[
        bool, typer.Option(help="Store what 'qcompile verify' compares with in the bundle.")
    ],
    "dump_ir": Annotated[
        Path | None, typer.Option(help="Folder that gets one numbered file a pass.", show_default=False)
    ],
    "tuned": Annotated[
        bool, typer.Option("--tuned/--no-log", help="Use the tuning logs that come with the compiler.")
    ],
    "log": Annotated[
        Path | None,
        typer.Option(help="Folder with a tuning log to use besides; it comes first.", show_default=False),
    ],
    "dim": Annotated[
        list[str] | None,
        typer.Option(
            help="Of an ONNX model, what a symbolic extent is; may be repeated. An input's first axis is 1 if it is "
            "not named.",
            metavar="NAME=N",
            show_default=False,
        ),
    ],
    "progress": ProgressOption,
}

_DEFAULTS = {
    # Lists are None until something is given; whoever sits at a terminal wants to see progress.
    **{f.name: getattr(CompileConfig(), f.name) for f in fields(CompileConfig)},
    **dict.fromkeys(("layer_precision", "keep_float", "dim")),
    "progress": True,
}

ALL = tuple(_OPTIONS)

Command = Callable[..., None]


def configured(*names: str) -> Callable[[Command], Command]:
    """A decorator of commands: in the place of the parameter ``config``, the options ``names``."""

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        parameters = []
        for parameter in inspect.signature(command).parameters.values():
            if parameter.name == "config":
                parameters += [_parameter(name) for name in names]
            else:
                kind = inspect.Parameter.KEYWORD_ONLY
                parameters.append(parameter.replace(annotation=hints[parameter.name], kind=kind))

        @wraps(command)
        def run(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in names}
            with guarded(arguments["traceback"]):
                config = config_of(given)
            command(config=config, **arguments)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # inspect reads it
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def config_of(options: dict[str, Any]) -> CompileConfig:
    """The configuration that options of a command line ask for.

    Args:
        options: values by the names of the configuration's fields, as the command line gives them.

    Raises:
        ConfigError: a value is none that is allowed.
    """
    options = dict(options)
    for name in ("keep_float", "dim"):
        if name in options:
            options[name] = tuple(options[name] or ())
    if "layer_precision" in options:
        options["layer_precision"] = dict(map(_assignment, options["layer_precision"] or ()))
    return CompileConfig(**options)


def _assignment(text: str) -> tuple[str, str]:
    name, equals, precision = text.rpartition("=")
    if not equals or not name:
        raise ConfigError(f"layer_precision is {text!r}; give NAME=PRECISION, as layer1.0.conv1=fp32")
    return name, precision


def _parameter(name: str) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=_DEFAULTS[name], annotation=_OPTIONS[name]
    )
