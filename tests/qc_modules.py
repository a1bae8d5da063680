"""Modules of a few calls built by hand, compiled in process, and compared with the reference interpreter."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import gpu_simulator
import numpy as np
import pytest
import tvm
from tvm import relax

from qcompiler.driver.cross import emulator
from qcompiler.driver.gpu import embed, limits
from qcompiler.driver.kernels import kernels
from qcompiler.driver.link import link_shared
from qcompiler.errors import BuildError
from qcompiler.passes import pipeline
from qcompiler.passes.graph import bindings, op_name
from qcompiler.reference import interpret
from qcompiler.targets import registry
from qcompiler.targets.base import GpuTarget, Target
from qcompiler.targets.host import read_host
from qcompiler.targets.workload import Scheduler, default_schedule

T = TypeVar("T")

EMULATED = {"smull": "cortex-a72", "sdot": "neoverse-n1", "smmla": "max"}
"""The weakest processor of the emulator that has a target's instruction: any other instruction traps."""

ARM_TARGETS = ("arm-neon", "arm-dotprod", "arm-i8mm")
"""One target of each instruction; kernels for them run emulated."""

CUDA_TARGET = "cuda-sm80"
"""A target whose kernels run simulated; those of other GPUs differ in what ``tests/targets/cuda`` looks at."""

TARGETS = ("native", "x86-avx512-vnni", "x86-avx512", "x86-avx2", "x86-avx-vnni")
"""Targets of x86 that the kernels are built for: this machine's, and one of each instruction and width."""

Input = tuple[tuple[int, ...], str]
"""Shape and dtype of a parameter."""

Emit = Callable[[relax.Expr], relax.Var]


def make(build: Callable[..., Any], *inputs: Input) -> tvm.IRModule:
    """Module whose ``main`` takes ``inputs`` and returns a tuple of what ``build(emit, *parameters)`` gives.

    ``build`` binds intermediate values with ``emit`` and returns an expression or several.
    """
    builder = relax.BlockBuilder()
    parameters = [
        relax.Var(f"x{k}", relax.TensorType(shape, dtype)) for k, (shape, dtype) in enumerate(inputs)
    ]
    with builder.function("main", parameters):
        with builder.dataflow():
            result = build(builder.emit, *parameters)
            fields = [builder.emit(r) for r in (result if isinstance(result, tuple) else (result,))]
            output = builder.emit_output(relax.Tuple(fields))
        builder.emit_func_output(output)
    return builder.get()


def const(values: Any, dtype: str | None = None) -> relax.Expr:
    array = np.asarray(values, dtype, order="C")
    return relax.const(array, array.dtype.name)


def q(x: relax.Expr, scale: float, zero_point: int = 0, dtype: str = "uint8") -> relax.Expr:
    return relax.op.quantize(x, const(scale, "float32"), const(zero_point, "int32"), axis=-1, out_dtype=dtype)


def dq(x: relax.Expr, scale: float, zero_point: int = 0) -> relax.Expr:
    return relax.op.dequantize(
        x, const(scale, "float32"), const(zero_point, "int32"), axis=-1, out_dtype="float32"
    )


def dq_weight(values: np.ndarray, scales: Any, zero_points: Any = None, axis: int = 0) -> relax.Expr:
    scales = np.asarray(scales, np.float32)
    zeros = np.zeros(scales.shape, np.int32) if zero_points is None else np.asarray(zero_points, np.int32)
    return relax.op.dequantize(const(values), const(scales), const(zeros), axis=axis, out_dtype="float32")


def operators(module: tvm.IRModule) -> list[str]:
    """Names of the operators that ``main`` calls, in order."""
    return [op_name(b.value) for b in bindings(module) if op_name(b.value)]


def assert_equal(after: tvm.IRModule, expected: tvm.IRModule) -> None:
    tvm.ir.assert_structural_equal(after, expected, map_free_vars=True)


def in_thread(function: Callable[[], T]) -> T:
    """Runs in a new thread: TVM's worker pool belongs to the thread, and other tests look at their own."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        return pool.submit(function).result()


def runs_here(target: Target) -> bool:
    """Whether code for ``target`` can run here, emulated or not."""
    return why_not(target) is None


def why_not(target: Target) -> str | None:
    """Why code for ``target`` cannot run here; None where it can."""
    if target.family == "cuda":
        return gpu_simulator.why_not()
    if target.family == "arm":
        return why_not_emulated()
    lacks = sorted(frozenset(target.required_features) - read_host().features)
    return f"this CPU lacks features of {target.name}" if lacks else None


@cache
def why_not_emulated() -> str | None:
    """Why ARM code cannot run here; None where it can."""
    try:
        emulator.find("arm")
    except BuildError as error:
        return str(error)
    return None


@dataclass(frozen=True)
class Built:
    """A module of integer operators, compiled."""

    executable: Any
    target: Target
    kernels: limits.Kernels | None = None


def build(module: tvm.IRModule, target: Target, scheduler: Scheduler = default_schedule) -> Built:
    """Compiles a module of integer operators."""
    tvm_target = registry.to_tvm(target, 2)
    dump = pipeline.Dump(None)
    physical = pipeline.to_physical(
        module, target, tvm_target, dump=dump, scheduler=scheduler, **kernels(target)
    )
    machine = pipeline.to_machine(physical.module, tvm_target, dump)
    if not isinstance(target, GpuTarget):
        return Built(relax.build(machine, tvm_target, relax_pipeline=None), target)
    with embed.source_only(), limits.verified(target) as found:
        return Built(relax.build(machine, tvm_target, relax_pipeline=None), target, found)


def run(built: Built, samples: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    """Outputs, flattened, for each of ``samples``."""
    if built.target.family == "arm":
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "model.so"
            built.executable.export_library(str(library), fcompile=link_shared)
            return emulator.run(library, samples, family="arm", cpu=EMULATED[built.target.instruction])

    if built.target.family == "cuda":
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "model.so"
            gpu_simulator.export(built.executable, library, 80)
            return gpu_simulator.run(library, samples)

    def work() -> list[list[np.ndarray]]:
        machine = relax.VirtualMachine(built.executable, tvm.cpu())
        results = []
        for arrays in samples:
            out = machine["main"](*(tvm.runtime.tensor(a) for a in arrays))
            fields = [out] if isinstance(out, tvm.runtime.Tensor) else list(out)
            results.append([f.numpy() for f in fields])
        return results

    return in_thread(work)


def reference(module: tvm.IRModule, samples: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    def work() -> list[list[np.ndarray]]:
        results = []
        for arrays in samples:
            values = interpret(module, arrays)
            assert all(v.exact for v in values)
            results.append([v.array for v in values])
        return results

    return in_thread(work)


@dataclass(frozen=True)
class Case:
    """A call to compare.

    Attributes:
        name: for the test's id.
        inputs: shapes and dtypes of its operands that are computed.
        build: makes the call from ``emit`` and the operands.
        reals: range of float32 operands.
    """

    name: str
    inputs: tuple[Input, ...]
    build: Callable[..., relax.Expr]
    reals: float = 1000.0


def samples(inputs: Sequence[tuple[Input, float]]) -> list[list[np.ndarray]]:
    """Random bytes, all 0, all 255; and for float32 random numbers with halves, infinities and the like."""
    rng = np.random.default_rng(0)
    result = []
    for fill in (None, 0, 255):
        arrays = []
        for (shape, dtype), reals in inputs:
            if dtype == "uint8":
                array = (
                    rng.integers(0, 256, shape, np.uint8) if fill is None else np.full(shape, fill, np.uint8)
                )
            else:
                array = (
                    rng.uniform(-reals, reals, shape) if fill != 0 else rng.integers(-40, 40, shape) / 2
                ).astype(np.float32)
                if fill == 255:
                    special = np.array(
                        [3.0e38, -3.0e38, np.inf, -np.inf, 0.0, -0.0, 1e-45, 2.0**31], np.float32
                    )
                    array.reshape(-1)[: special.size] = special[: array.size]
            arrays.append(array)
        result.append(arrays)
    return result


class Suite:
    """Cases that are compiled together, once a target, and compared one by one."""

    def __init__(self, cases: Sequence[Case]) -> None:
        assert len({case.name for case in cases}) == len(cases)
        self.cases = {case.name: case for case in cases}
        self.samples = samples([(i, case.reals) for case in cases for i in case.inputs])
        self._expected = cache(lambda: reference(self.module(), self.samples))
        self._actual = cache(lambda name: run(self._executable(name), self.samples))
        self._executable = cache(lambda name: build(self.module(), registry.resolve(name)))

    def module(self) -> tvm.IRModule:
        def outputs(emit: Emit, *parameters: relax.Var) -> tuple[relax.Expr, ...]:
            rest = list(parameters)
            results = []
            for case in self.cases.values():
                operands, rest = rest[: len(case.inputs)], rest[len(case.inputs) :]
                results.append(emit(case.build(emit, *operands)))
            return tuple(results)

        return make(outputs, *(i for case in self.cases.values() for i in case.inputs))

    def check(self, name: str, target_name: str) -> None:
        """Asserts that the kernel of case ``name`` agrees in every bit; only builds it where it cannot run."""
        assert self._executable(target_name) is not None
        target = registry.resolve(target_name)
        if not runs_here(target):
            pytest.skip(f"built, not run: {why_not(target)}")
        position = list(self.cases).index(name)
        for given, actual, expected in zip(
            self.samples, self._actual(target_name), self._expected(), strict=True
        ):
            assert actual[position].dtype == expected[position].dtype
            np.testing.assert_array_equal(
                actual[position], expected[position], err_msg=f"inputs of {given[0].dtype}"
            )
