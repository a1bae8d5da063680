"""Keeps TVM's library of tensor intrinsics out of the process: importing it takes half a minute, and nothing of it is used."""

from __future__ import annotations

import sys
import types

NAME = "tvm.s_tir.tensor_intrin"


def keep_out() -> None:
    """Puts an empty module where MetaSchedule imports ``tvm.s_tir.tensor_intrin``; no change if it was imported."""
    sys.modules.setdefault(NAME, types.ModuleType(NAME))


def is_out() -> bool:
    """Whether the real module was never imported."""
    return getattr(sys.modules.get(NAME), "__file__", None) is None
