"""One candidate: how its library is made, run, checked and timed. Workers in other processes do this.

The library has two functions: ``body``, the kernel, and ``cycle``, which calls it once for each of several copies of its
weights. In a network every layer's weights have left the nearer caches when it runs again; with as many copies as fill
several times the level-2 cache the measurement sees the same. Activations have one copy, as the layer before has just
written them.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import tvm
from tvm import tirx
from tvm.ir import IRModule
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import Trace

from qcompiler.driver.tuning.decisions import TraceJson
from qcompiler.targets.base import GpuTarget

Array = npt.NDArray[Any]

ALIGNMENT = 64
"""Bytes that TVM's kernels take their tensors to be aligned to."""

REPEATS = 7
"""Timings whose median counts."""

MINIMUM_MS = 4
"""Milliseconds of one timing, at least."""

POISON = 0xA5
"""What an output holds before it is computed."""


@dataclass(frozen=True)
class Build:
    """A library to make.

    Attributes:
        module: file with the kernel as JSON, ``main`` of a module.
        trace: the schedule.
        copies: copies of each argument, output last.
        target: TVM's target, as JSON.
        library: file to write.
        gpu: the GPU that the kernel is for; None for a processor.
    """

    module: str
    trace: TraceJson
    copies: tuple[int, ...]
    target: dict[str, Any]
    library: str
    gpu: GpuTarget | None = None


@dataclass(frozen=True)
class Run:
    """Libraries of one kernel to check and to time.

    Attributes:
        libraries: what :func:`build` wrote; they are timed in turns.
        data: ``.npz`` with the arguments ``a0``, ``a1``, ... but the output, and what the kernel must give, ``expected``.
        copies: copies of each argument, output last.
        threads: numbers of threads.
        rounds: turns.
        gpu: the libraries run on a GPU.
    """

    libraries: tuple[str, ...]
    data: str
    copies: tuple[int, ...]
    threads: tuple[int, ...]
    rounds: int = 1
    gpu: bool = False


@dataclass(frozen=True)
class Timing:
    """What came of one library.

    Attributes:
        seconds: of one run of the kernel, for each number of threads; empty if it failed.
        fault: why it failed, or None.
        wrong: its output was wrong.
    """

    seconds: tuple[float, ...] = ()
    fault: str | None = None
    wrong: bool = False


class Machine(Protocol):
    """Where a library runs: this process, or a board."""

    device: Any

    def load(self, library: str) -> Any:
        """The library's module."""

    def use_threads(self, threads: int) -> None:
        """Sets how many threads the kernels use."""


def padded(count: int, dtype: str) -> int:
    """Elements of one copy of an argument, so that the next one is aligned."""
    size = np.dtype(dtype).itemsize
    return -(-count * size // ALIGNMENT) * ALIGNMENT // size


def build(job: Build) -> None:
    """Makes the library of a candidate."""
    from qcompiler.driver.link import link_shared
    from qcompiler.targets.workload import finish

    sch = Schedule(tvm.ir.load_json(Path(job.module).read_text(encoding="utf-8")))
    Trace.apply_json_to_schedule(job.trace, sch)
    kernel = finish(sch)
    functions = {"body": kernel.with_attr("global_symbol", "body"), "cycle": _cycle(kernel, job.copies)}
    target = tvm.target.Target(job.target)
    if job.gpu is None:
        tvm.tirx.build(IRModule(functions), target=target).export_library(job.library, fcompile=link_shared)
        return
    from qcompiler.driver.gpu.build import build_functions

    build_functions(IRModule(functions), job.gpu, target, Path(job.library))


def _cycle(kernel: tirx.PrimFunc, copies: Sequence[int]) -> tirx.PrimFunc:
    """The function that calls ``body`` for each copy of its arguments, which lie one after the other."""
    turn = tirx.Var("turn", "int32")
    buffers, views = [], []
    for buffer, count in zip(kernel.params, copies, strict=True):
        shape, dtype = [int(d) for d in buffer.shape], str(buffer.dtype)
        size = padded(prod(shape), dtype)
        every = tirx.decl_buffer((count, size), dtype, name=buffer.name)
        # By its address alone: where it is a GPU's, the host must not look into it.
        first = tirx.handle_add_byte_offset(
            every.data, turn * (size * np.dtype(dtype).itemsize) if count > 1 else 0
        )
        extents = tirx.op.tvm_stack_make_shape(*shape) if shape else 0
        views.append(tirx.op.tvm_stack_make_array(first, extents, 0, len(shape), tirx.const(0, dtype), 0))
        buffers.append(every)
    call = tirx.Evaluate(tirx.call_cpacked("body", *views))
    loop = tirx.For(turn, 0, max(copies), tirx.ForKind.SERIAL, call)
    return tirx.PrimFunc(buffers, loop).with_attr("global_symbol", "cycle")


def run(job: Run, machine: Machine) -> list[Timing]:
    """Checks and times libraries; a library that fails does not stop the others."""
    with np.load(job.data) as archive:
        inputs = [archive[f"a{k}"] for k in range(len(archive.files) - 1)]
        expected = archive["expected"]
    place = machine.device
    arguments = [tvm.runtime.tensor(_copies(a, n), place) for a, n in zip(inputs, job.copies, strict=False)]
    shape = (1, padded(expected.size, expected.dtype.name))
    poison = np.full(shape[1] * expected.itemsize, POISON, np.uint8).view(expected.dtype).reshape(shape)
    output = tvm.runtime.tensor(poison, place)
    timings: list[Timing] = []
    timers: list[list[Any]] = []
    for library in job.libraries:
        module = machine.load(library)
        call, timer = module["cycle"], []
        timing = Timing()
        for threads in job.threads:
            machine.use_threads(threads)
            output.copyfrom(poison)
            call(*arguments, output)
            found = output.numpy().reshape(-1)[: expected.size]
            differing = int(np.count_nonzero(found.view(np.uint8) != expected.reshape(-1).view(np.uint8)))
            if differing:
                fault = f"its output differs from the reference in {differing} bytes at {threads} threads"
                timing = Timing(fault=fault, wrong=True)
                break
            evaluate = module.time_evaluator(
                "cycle", place, number=1, repeat=REPEATS, min_repeat_ms=MINIMUM_MS
            )
            timer.append(evaluate)
        timings.append(timing)
        timers.append([] if timing.wrong else timer)
    measured: list[list[list[float]]] = [[[] for _ in job.threads] for _ in job.libraries]
    for _ in range(job.rounds):
        for position, threads in enumerate(job.threads):
            machine.use_threads(threads)
            for index, timer in enumerate(timers):
                if timer:
                    results = timer[position](*arguments, output).results
                    measured[index][position].append(statistics.median(results) / max(job.copies))
    return [
        timing if timing.wrong else Timing(tuple(statistics.median(m) for m in times))
        for timing, times in zip(timings, measured, strict=True)
    ]


def _copies(array: Array, count: int) -> Array:
    """``count`` copies of an array, flat and aligned: ``[count, elements]``."""
    flat = np.zeros(padded(array.size, array.dtype.name), array.dtype)
    flat[: array.size] = array.reshape(-1)
    return np.ascontiguousarray(np.broadcast_to(flat, (count, flat.size)))
