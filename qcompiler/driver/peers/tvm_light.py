"""MetaSchedule without the half minute that importing all of TVM's tensor intrinsics takes.

``tvm.s_tir.meta_schedule`` imports the package ``tvm.s_tir.tensor_intrin`` in every process, whose ``cuda`` alone takes
25 seconds. An empty package of that name keeps it out, and the x86 intrinsics, which the default rules name, come from
their own module.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import tvm

_NAME = "tvm.s_tir.tensor_intrin"


def initialize() -> None:
    """Registers the x86 intrinsics, in this process; MetaSchedule's builders call it in theirs."""
    if _NAME not in sys.modules:
        package = types.ModuleType(_NAME)
        package.__path__ = [str(Path(tvm.__file__).parent / "s_tir" / "tensor_intrin")]
        sys.modules[_NAME] = package
    importlib.import_module(f"{_NAME}.x86")


def build(module: Any, target: Any, _params: Any) -> Any:
    """A candidate's library, as MetaSchedule's own builder makes it."""
    from tvm.driver import build as build_module
    from tvm.s_tir.transform import RemoveWeightLayoutRewriteBlock

    return build_module(RemoveWeightLayoutRewriteBlock(skip_tensor_rewrite=True)(module), target=target)
