"""The folded module as a file: gzip'ed JSON, the same bytes for the same module."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import tvm

import qcompiler.operators  # noqa: F401  (registers the operators that the JSON names)
from qcompiler.errors import BundleError


def save(module: tvm.IRModule, path: Path | str) -> None:
    """Writes ``module``, constants included; neither the time nor the file's name enters the bytes."""
    data = tvm.ir.save_json(module).encode()
    with open(path, "wb") as file, gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as archive:
        archive.write(data)


def load(path: Path | str) -> tvm.IRModule:
    """The module that :func:`save` wrote.

    Raises:
        BundleError: the file is missing, damaged, or holds no module.
    """
    try:
        with gzip.open(path, "rb") as archive:
            text = archive.read().decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as e:
        raise BundleError(f"reference module {path} cannot be read ({e}); compile the model again") from e
    try:
        module = tvm.ir.load_json(text)
    except (RuntimeError, ValueError, TypeError, KeyError) as e:
        raise BundleError(
            f"reference module {path} holds no module of this version; compile the model again"
        ) from e
    if not isinstance(module, tvm.IRModule):
        raise BundleError(f"reference module {path} holds a {type(module).__name__}; expected an IRModule")
    return module
