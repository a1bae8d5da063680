"""ScheduleFloat: what stays in float, and what moves bytes, gets loops that are parallel and vectorized.

Before::

    for n, c, h, w: y[n, c, h, w] = exp(x[n, c, h, w])

After::

    parallel for i: for j in vector: y[...] = exp(x[...])

Kernels of the integer operators are scheduled already and are left alone.
"""

from __future__ import annotations

import logging

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import LoopRV, SBlockRV, ScheduleError

SCHEDULED = "tirx.is_scheduled"
"""Attribute of a kernel that has its schedule."""

PARALLEL_MINIMUM = 1 << 15
"""Iterations below which waking the pool costs more than it saves."""

log = logging.getLogger(__name__)


class ScheduleFloat:
    """Schedules every kernel that has no schedule yet."""

    def __init__(self, vector_bits: int) -> None:
        self.lanes = vector_bits // 32

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        updated = module.clone()
        for var, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and not (function.attrs and SCHEDULED in function.attrs):
                updated.update_func(var, self._scheduled(var.name_hint, function))
        return updated

    def _scheduled(self, name: str, function: tirx.PrimFunc) -> tirx.PrimFunc:
        try:
            sch = Schedule(tvm.IRModule({"main": function}))
            blocks = sch.get_child_blocks(sch.get_sblock("root"))
        except (ScheduleError, ValueError, TypeError) as error:
            log.info("%s is left unscheduled: %s", name, str(error).splitlines()[0])
            return function
        for block in blocks:
            try:
                _schedule_block(sch, block, self.lanes)
            except ScheduleError as error:
                log.info("a block of %s is left as it is: %s", name, str(error).splitlines()[0])
        return sch.mod["main"].with_attr(SCHEDULED, True)


def _schedule_block(sch: Schedule, block: SBlockRV, lanes: int) -> None:
    loops = sch.get_loops(block)
    kinds = [str(_kind(i.iter_type)) for i in sch.get(block).iter_vars]
    if not loops or len(loops) != len(kinds):
        return
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == "spatial"]
    reduced = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != "spatial"]
    if not spatial or any(kind not in ("spatial", "reduce") for kind in kinds):
        return
    extents = [_extent(sch, loop) for loop in loops]
    if any(e is None for e in extents):
        return
    total = 1
    for extent in extents:
        total *= extent or 1
    if not reduced:
        fused = sch.fuse(*spatial) if len(spatial) > 1 else spatial[0]
        size = _extent(sch, fused) or 1
        if size % lanes == 0 and not _writes_booleans(sch, block):
            per_task = lanes * max(d for d in range(1, min(size // lanes, 256) + 1) if size // lanes % d == 0)
            task, inner = sch.split(fused, [None, per_task])
            _, vector = sch.split(inner, [None, lanes])
            sch.vectorize(vector)
        else:
            task, _ = sch.split(fused, [None, min(size, 16 * lanes)])
        if total >= PARALLEL_MINIMUM:
            sch.parallel(task)
        return
    *outer, last = spatial
    vector_extent = _extent(sch, last) or 1
    if vector_extent >= 4:
        # Sums over the reduction, a vector of outputs at a time.
        fitting = (w for w in (2 * lanes, lanes, lanes // 2) if vector_extent % w == 0)
        width = next(fitting, min(vector_extent, 2 * lanes))
        chunk, vector = sch.split(last, [None, width])
        sch.reorder(*outer, chunk, *reduced, vector)
        tasks = [*outer, chunk]
        if vector_extent % width == 0 and not _writes_booleans(sch, block):
            sch.vectorize(vector)
    else:
        sch.reorder(*spatial, *reduced)
        tasks = spatial
    fused = sch.fuse(*tasks) if len(tasks) > 1 else tasks[0]
    if total >= PARALLEL_MINIMUM:
        sch.parallel(fused)
    sch.decompose_reduction(block, reduced[0])


def _writes_booleans(sch: Schedule, block: SBlockRV) -> bool:
    """Booleans lie in memory as bytes, and TVM converts to them no more than one at a time."""
    return any(str(region.source.dtype) == "bool" for region in sch.get(block).writes)


def _kind(iter_type: int) -> str:
    names = {tirx.IterVar.DataPar: "spatial", tirx.IterVar.CommReduce: "reduce"}
    return names.get(iter_type, "other")


def _extent(sch: Schedule, loop: LoopRV) -> int | None:
    extent = sch.get(loop).extent
    value = getattr(extent, "value", extent)
    return int(value) if isinstance(value, int) else None
