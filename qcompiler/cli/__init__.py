"""The command line ``qcompile``: one file a command, which parses, calls one function, and prints."""

from __future__ import annotations

import logging
import sys
import warnings

import typer

from qcompiler.cli import (
    analyze,
    bench,
    compile,
    demo,
    evaluate,
    export,
    export_onnx,
    inspect,
    logs,
    migrate,
    profile,
    quantize,
    run,
    search,
    sign,
    targets,
    tune,
    verify,
)
from qcompiler.cli.options import UsageError, fail

app = typer.Typer(
    name="qcompile",
    help="Compiles trained PyTorch models into int8 shared libraries, and runs them.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (
    compile, analyze, quantize, search, tune, run, evaluate, bench, profile, verify, inspect, migrate, sign, export,
    export_onnx, targets, demo,
):  # fmt: skip
    app.command(module.__name__.rpartition(".")[2].replace("_", "-"))(module.command)
app.add_typer(logs.app, name="logs")


def main() -> None:
    """The program ``qcompile``. It ends with status 1, and one line that says why, if anything went wrong."""
    _quiet_packages()
    logging.basicConfig(format="qcompile: %(message)s", stream=sys.stderr)
    try:
        status = app(sys.argv[1:] or ["--help"], standalone_mode=False)
    except UsageError as error:
        fail(f"{error.format_message()} (see {_help_command()})")
    except typer.Abort:
        fail("interrupted")
    # A command that ends early, such as --help, gives its status here.
    sys.exit(status if isinstance(status, int) else 0)


def _quiet_packages() -> None:
    """Silences what other packages tell programmers; nobody at a command line can act on it."""
    warnings.simplefilter("ignore")
    # PyTorch sets the level of its own root logger when it is imported, but not of those below it.
    for name in ("torch.utils._pytree", "torch.onnx", "torchao", "onnxscript", "onnx_ir", "nncf"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _help_command() -> str:
    names = {*(info.name for info in app.registered_commands), *(info.name for info in app.registered_groups)}
    command = next((argument for argument in sys.argv[1:] if argument in names), None)
    return f"qcompile {command} --help" if command else "qcompile --help"
