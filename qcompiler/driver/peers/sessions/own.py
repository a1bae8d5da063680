"""qcompiler's own runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def import_engine() -> None:
    from qcompiler.runtime.library import import_ffi

    import_ffi()


def open_session(model: str, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    from pathlib import Path

    from qcompiler import runtime

    loaded = runtime.load(Path(model), threads)
    return lambda inputs: loaded.run(*inputs)
