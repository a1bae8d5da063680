"""BindThreads: what stays in float, and what moves bytes, gets a thread for every element of its output.

Before::

    for n, c, h, w: y[n, c, h, w] = exp(x[n, c, h, w])

After::

    thread i: y[...] = exp(x[...])

Kernels of the integer operators are scheduled already and are left alone. Other code than this runs on the host, which
has no access to the memory of a GPU, so a kernel that cannot be scheduled is refused.
"""

from __future__ import annotations

import tvm
from tvm import tirx
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ScheduleError

from qcompiler.errors import PassError
from qcompiler.passes.schedule_float import SCHEDULED
from qcompiler.targets.cuda.schedules import bind_block


class BindThreads:
    """Schedules every kernel that has no schedule yet, for a GPU.

    Raises:
        PassError: a kernel has a form that cannot be scheduled.
    """

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        updated = module.clone()
        for var, function in module.functions_items():
            if isinstance(function, tirx.PrimFunc) and not (function.attrs and SCHEDULED in function.attrs):
                updated.update_func(var, _scheduled(var.name_hint, function))
        return updated


def _scheduled(name: str, function: tirx.PrimFunc) -> tirx.PrimFunc:
    try:
        sch = Schedule(tvm.IRModule({"main": function}))
        for block in sch.get_child_blocks(sch.get_sblock("root")):
            bind_block(sch, block)
    except (ScheduleError, ValueError, TypeError) as error:
        fault = str(error).strip().splitlines()[0]
        raise PassError(f"{name} has no schedule for a GPU: {fault}; report this as a bug") from error
    return sch.mod["main"].with_attr(SCHEDULED, True)
