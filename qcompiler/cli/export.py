"""``qcompile export``: packs a bundle into one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.options import Bundle, Json, Traceback, emit_json, guarded


def command(
    bundle: Bundle,
    format: Annotated[str, typer.Option(help="tar, wheel or deb.", show_default=False)],
    output: Annotated[
        Path,
        typer.Option(
            help="File to write; or a folder, in which it gets the usual name. A name without an ending is a folder's.",
            show_default=False,
        ),
    ],
    name: Annotated[
        str | None,
        typer.Option(help="Name of the package; from the folder's name if not given.", show_default=False),
    ] = None,
    version: Annotated[str, typer.Option(help="Version of the package.")] = "1.0.0",
    maintainer: Annotated[
        str, typer.Option(help="For deb: name and address of who answers for it.")
    ] = "unknown <unknown@localhost>",
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Packs a bundle for machines without the compiler: a tarball, a Python wheel, or a Debian package."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.export import export

        result = export(
            bundle,
            format,  # type: ignore[arg-type]  # export checks it
            output,
            name=name,
            version=version,
            maintainer=maintainer,
        )
        if json:
            emit_json(result)
            return
        report.show(f"{result.path}: {report.size(result.size)}")
