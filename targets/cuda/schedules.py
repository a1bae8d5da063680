"""Schedules of kernels that are tensor expressions: a thread computes an element of the output."""

from __future__ import annotations

from tvm import relax, tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import SBlockRV

from qcompiler.targets.base import Target
from qcompiler.targets.cpu.shapes import Kernel
from qcompiler.targets.workload import Sketch

THREADS = 256
"""Threads of a block."""


def bind_block(sch: Schedule, block: SBlockRV) -> None:
    """Gives each element of the output of ``block`` a thread, which runs the block's reductions on its own.

    Raises:
        ScheduleError: the block has loops that are neither.
    """
    loops = sch.get_loops(block)
    kinds = [int(i.iter_type) for i in sch.get(block).iter_vars]
    if len(kinds) != len(loops):
        kinds = [tirx.IterVar.DataPar] * len(loops)
    spatial = [loop for loop, kind in zip(loops, kinds, strict=True) if kind == tirx.IterVar.DataPar]
    rest = [loop for loop, kind in zip(loops, kinds, strict=True) if kind != tirx.IterVar.DataPar]
    if not spatial:  # a scalar
        spatial = [sch.add_unit_loop(rest[0] if rest else block)]
    elif rest:
        sch.reorder(*spatial, *rest)
    fused = sch.fuse(*spatial) if len(spatial) > 1 else spatial[0]
    block_index, thread = sch.split(fused, [None, THREADS])
    sch.bind(block_index, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")


def schedule_elementwise(sch: Schedule) -> None:
    """A kernel of one block."""
    bind_block(sch, sch.get_sblock("out"))


def schedule_sums(sch: Schedule) -> None:
    """A kernel of a reduction and the step that follows it: a thread has its sum in a register."""
    out, acc = sch.get_sblock("out"), sch.get_sblock("acc")
    bind_block(sch, out)
    sch.compute_at(acc, sch.get_loops(out)[-1], preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")


class GpuSchedules:
    """An element of the output a thread."""

    def spatial(self, kernel: Kernel, call: relax.Call, target: Target, *, element_bytes: int) -> Sketch:
        return schedule_elementwise

    def pool(self, call: relax.Call, target: Target, *, epilogue: bool) -> Sketch:
        return schedule_sums if epilogue else schedule_elementwise

    def transpose(self, call: relax.Call, target: Target) -> Sketch:
        return schedule_elementwise
