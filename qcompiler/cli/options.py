"""What the commands share: options of the same meaning, and how results and errors reach the user."""

from __future__ import annotations

import re
import sys
import traceback as tracebacks
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from qcompiler.errors import ConfigError, QCompilerError

UsageError: Any = typer.BadParameter.__mro__[1]
"""The error of a command line that cannot be parsed; typer has no public name for it."""

Bundle = Annotated[Path, typer.Argument(help="Folder that 'qcompile compile' wrote.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Traceback = Annotated[bool, typer.Option("--traceback", help="Print where an error comes from.")]
ProgressOption = Annotated[bool, typer.Option(help="Show a progress bar for long work.")]
Threads = Annotated[
    int | None, typer.Option(help="Threads of one run; all physical cores if not given.", show_default=False)
]
RequireSignature = Annotated[
    Path | None,
    typer.Option(
        help="An Ed25519 public key (PEM); refuse a bundle that its owner has not signed.",
        metavar="KEY",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(help="Use only the first samples.", min=1, show_default=False)]
SourceModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="The float model: a .pt2 archive, an .onnx file, or package.module:function.",
        show_default=False,
    ),
]


@contextmanager
def guarded(traceback: bool) -> Iterator[None]:
    """Turns an error of the block into one line on the standard error and exit status 1."""
    try:
        yield
    except (typer.Exit, typer.Abort, UsageError):
        raise
    except KeyboardInterrupt:
        fail("interrupted")
    except BrokenPipeError:
        # Who reads the output, such as 'head', has seen enough.
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        if traceback:
            tracebacks.print_exc()
        if isinstance(error, QCompilerError):
            fail(str(error))
        hint = "" if traceback else "; run again with --traceback, and report it"
        fail(f"internal error: {type(error).__name__}: {error}{hint}")


def fail(message: str) -> NoReturn:
    """Ends the program with ``message`` as one line on the standard error."""
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(1)


def emit_json(value: Any) -> None:
    """Prints ``value`` as JSON."""
    from qcompiler.report import to_json

    print(to_json(value))


def left_in_float(records: Iterable[Any]) -> list[Any]:
    """The table of what stays in float, from records with ``operator``, ``place`` and ``reason``; none if none does."""
    from qcompiler.report import table

    rows = [(record.operator, record.place, record.reason) for record in records]
    return [table("Left in float", ["operator", "place", "reason"], rows)] if rows else []


def optimizations(records: Iterable[Any]) -> list[Any]:
    """The table of what was tried to lower the error of quantization; none if nothing was."""
    from qcompiler import report

    tried = list(records)
    return [report.optimizations(tried)] if tried else []


def split(option: str, text: str | None) -> tuple[str, ...]:
    """The parts of a value like ``a,b``; none for None.

    Raises:
        ConfigError: a part is empty.
    """
    if text is None:
        return ()
    parts = tuple(part.strip() for part in text.split(","))
    if not all(parts):
        raise ConfigError(f"{option} is {text!r}; give names with a comma between them")
    return parts


def integers(option: str, text: str | None) -> tuple[int, ...]:
    """As :func:`split`, for positive integers.

    Raises:
        ConfigError: a part is no positive integer.
    """
    parts = split(option, text)
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ConfigError(f"{option} is {text!r}; give positive numbers with a comma between them, as in 1,2")
    return tuple(int(part) for part in parts)


def seconds(option: str, text: str | None) -> float | None:
    """A duration such as ``3ms``, ``250us`` or ``0.1s``; None for None.

    Raises:
        ConfigError: it is no positive number with a unit.
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(us|ms|s)\s*", text)
    value = float(match[1]) * {"us": 1e-6, "ms": 1e-3, "s": 1.0}[match[2]] if match else 0.0
    if value <= 0:
        raise ConfigError(
            f"{option} is {text!r}; give a positive number with a unit (us, ms or s), as in 3ms"
        )
    return value


def shape(extents: Sequence[int]) -> str:
    """Extents as ``[1, 3, 224, 224]``."""
    return f"[{', '.join(map(str, extents))}]"
