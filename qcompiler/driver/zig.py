"""The tools of the ``ziglang`` wheel: a linker, and a C compiler that knows every machine and its C library."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from qcompiler.errors import BuildError

_TOOLS = {"ld.lld": "linker", "cc": "C compiler"}


def run_zig(
    tool: Literal["ld.lld", "cc"], arguments: Sequence[str], doing: str, folder: Path | None = None
) -> None:
    """Runs a tool.

    Args:
        tool: zig's name of it.
        arguments: of the tool.
        doing: what for, as the beginning of a message: ``linking model.so``.
        folder: where it runs; here if not given.

    Raises:
        BuildError: ``ziglang`` is not installed, or the tool failed; its own words are in the message.
    """
    if importlib.util.find_spec("ziglang") is None:
        raise BuildError(f"no {_TOOLS[tool]}: the package ziglang is not installed; run pip install ziglang")
    command = [sys.executable, "-m", "ziglang", tool, *arguments]
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, errors="replace", check=False
    )
    if result.returncode != 0:
        said = " | ".join((result.stderr or result.stdout).split("\n")).strip(" |")
        raise BuildError(f"{doing} failed with exit status {result.returncode}: {said}")
