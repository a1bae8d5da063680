"""The clock of this machine's processor, measured: a nominal frequency says little of a core that boosts."""

from __future__ import annotations

import time
from typing import Any

import tvm
from tvm.script import tirx as T

from qcompiler.targets.base import Target
from qcompiler.targets.registry import to_tvm

CYCLES_PER_STEP = 4
"""Latency of a 64-bit multiplication (3) and an exclusive or (1), on Intel's processors since Nehalem and
AMD's since Zen."""

_STEPS = 1_000_000
_REPEATS = 200
"""Short measurements, and the fastest of many: one of them is not interrupted, and sees the highest clock."""


@T.prim_func(s_tir=True)  # type: ignore[untyped-decorator]  # TVM's script is no typed Python
def _chain(state: T.Buffer((1,), "int64"), steps: T.int64) -> None:  # type: ignore[valid-type]
    """Steps of which each needs the result of the one before it, so that nothing but latency counts."""
    for i in T.serial(steps):
        with T.sblock("step"):
            T.reads(state[0])
            T.writes(state[0])
            state[0] = T.bitwise_xor(state[0] * T.int64(6364136223846793005), T.Cast("int64", i))


def clock_hertz(target: Target) -> float:
    """Cycles a second of one core of this machine, which runs nothing else meanwhile.

    Args:
        target: a target that this machine can run.
    """
    library: Any = tvm.compile(tvm.IRModule({"main": _chain}), target=to_tvm(target, 1))
    state = tvm.runtime.tensor([1], device=tvm.cpu())
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        library["main"](state, _STEPS)
        best = min(best, time.perf_counter() - start)
    return CYCLES_PER_STEP * _STEPS / best
