"""What a family of targets brings: kernels of the integer operators, and the version of their schedules."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from qcompiler.errors import TargetError
from qcompiler.operators import FLOAT_LAYERS
from qcompiler.targets.base import Target

FAMILIES = ("x86", "arm", "cuda")
"""Families of targets that have kernels."""


def kernels(target: Target) -> dict[str, Any]:
    """What the target's family offers to the passes, as arguments of ``pipeline.to_physical``.

    Raises:
        TargetError: its family has no kernels.
    """
    lowering = _module(target, "lowering")
    return {"lowerings": lowering.LOWERINGS, "borders": lowering.BORDERS}


def has_half_floats(target: Target) -> bool:
    """Whether the target has kernels for layers in bf16 and fp16.

    Raises:
        TargetError: its family has no kernels.
    """
    return bool(kernels(target)["lowerings"].keys() >= FLOAT_LAYERS)


def schedule_version(target: Target) -> int:
    """The version of the kernels' schedules.

    Raises:
        TargetError: its family has no kernels.
    """
    return int(_module(target, "version").SCHEDULE_VERSION)


def register(target: Target) -> None:
    """Registers the tensor intrinsics and the generators that schedules for ``target`` name."""
    _module(target, "lowering")  # registers generators
    if target.family == "x86":
        intrinsics = _module(target, "intrinsics")
        for lanes in (target.int32_lanes, target.int32_lanes // 2):
            intrinsics.dot4(target.instruction, lanes)


def _module(target: Target, name: str) -> ModuleType:
    if target.family not in FAMILIES:
        raise TargetError(
            f"target {target.name} is of the family {target.family}, which has no kernels yet; allowed: "
            f"{', '.join(FAMILIES)}"
        )
    return import_module(f"qcompiler.targets.{target.family}.{name}")
