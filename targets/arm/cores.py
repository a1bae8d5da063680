"""The cores of ARM processors, from the vendors' optimization guides.

Decisions without tuning and the estimates of inner loops count with these numbers.
"""

from __future__ import annotations

from qcompiler.targets.base import Target
from qcompiler.targets.cpu.cores import Core

CORES = {
    "cortex-a53": Core(2, 1, 1, in_order=True),
    "cortex-a55": Core(2, 1, 1, in_order=True, half_loads=True),
    "cortex-a72": Core(3, 2, 1),
    "cortex-a76": Core(4, 2, 2),
    "neoverse-n1": Core(4, 2, 2),
    "cortex-a710": Core(5, 2, 3),
    "neoverse-v1": Core(8, 4, 3),
    "apple-m1": Core(8, 4, 3),
}
"""Cores by LLVM's names."""

REPRESENTATIVES = {"arm-neon": "cortex-a72", "arm-dotprod": "neoverse-n1", "arm-i8mm": "cortex-a710"}
"""The core that stands for a generic target: the one that its peak is of."""


def core_of(target: Target) -> Core:
    """The core that code of ``target`` is for."""
    return CORES[REPRESENTATIVES.get(target.name, target.mcpu)]
