"""A wheel that ``qcompile export`` made, as an engine in a measured process; see ``qcompiler/driver/peers/sessions``.

The model is the folder that the wheel was unpacked into; it has the package ``startup_model``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

PACKAGE = "startup_model"


def import_engine() -> None:
    """Nothing yet: the package lies in the model's folder, so its import is a part of the load."""


def open_session(model: str, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    import importlib

    sys.path.insert(0, os.fspath(model))
    loaded = importlib.import_module(PACKAGE).load(threads)
    return lambda inputs: loaded.run(*inputs)
