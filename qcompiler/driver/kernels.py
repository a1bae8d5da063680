"""What a family of targets brings: kernels of the integer operators, and the version of their schedules."""

from __future__ import annotations

from typing import Any

from qcompiler.errors import TargetError
from qcompiler.targets.base import Target


def kernels(target: Target) -> dict[str, Any]:
    """What the target's family offers to the passes, as arguments of ``pipeline.to_physical``.

    Raises:
        TargetError: its family has no kernels.
    """
    _check(target)
    from qcompiler.targets.x86.lowering import BORDERS, LOWERINGS

    return {"lowerings": LOWERINGS, "borders": BORDERS}


def schedule_version(target: Target) -> int:
    """The version of the kernels' schedules.

    Raises:
        TargetError: its family has no kernels.
    """
    _check(target)
    from qcompiler.targets.x86.version import SCHEDULE_VERSION

    return SCHEDULE_VERSION


def register(target: Target) -> None:
    """Registers the tensor intrinsics and the generators that schedules for ``target`` name."""
    _check(target)
    import qcompiler.targets.x86.lowering  # noqa: F401  registers generators
    from qcompiler.targets.x86 import intrinsics

    for lanes in (target.int32_lanes, target.int32_lanes // 2):
        intrinsics.dot4(target.instruction, lanes)


def _check(target: Target) -> None:
    if target.family != "x86":
        raise TargetError(
            f"target {target.name} is of the family {target.family}, which has no kernels yet; allowed: x86"
        )
