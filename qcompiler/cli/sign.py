"""``qcompile sign``: signs a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.options import Bundle, Json, Traceback, emit_json, guarded


def command(
    bundle: Bundle,
    key: Annotated[Path, typer.Option(help="An Ed25519 private key (PEM).", show_default=False)],
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Signs a bundle, for '--require-signature' and 'openssl pkeyutl -verify'."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.sign import sign

        signature = sign(bundle, key)
        if json:
            emit_json({"signature": signature})
            return
        report.show(f"Signed: {signature}")
