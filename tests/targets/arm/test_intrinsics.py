"""Each instruction as it is emitted, against what its docstring says, on the values where instructions saturate."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from qc_modules import EMULATED, why_not_emulated
from tvm import relax, tirx

from qcompiler.driver.cross import emulator
from qcompiler.driver.link import link_shared
from qcompiler.targets import registry
from qcompiler.targets.arm import intrinsics
from qcompiler.targets.borders import in_root_block
from qcompiler.targets.cpu.vectors import ramp

Meaning = Callable[..., np.ndarray]


def smull_meaning(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    return w[:8].astype(np.int16) * x[:8].astype(np.int16)


def smlal_meaning(w: np.ndarray, x: np.ndarray) -> np.ndarray:
    return (w.astype(np.int32) * x).reshape(2, 8).sum(0).astype(np.int16)


def sadalp_meaning(acc: np.ndarray, x: np.ndarray) -> np.ndarray:
    return acc + x.astype(np.int32).reshape(4, 2).sum(1)


def sdot_meaning(acc: np.ndarray, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    return acc + (w.astype(np.int32) * x).reshape(4, 4).sum(1)


def sdot_lane_meaning(acc: np.ndarray, w: np.ndarray, x: np.ndarray) -> np.ndarray:
    return acc + w.astype(np.int32).reshape(4, 4) @ x[8:12].astype(np.int32)


def smmla_meaning(acc: np.ndarray, x: np.ndarray, w: np.ndarray) -> np.ndarray:
    return acc + (x.astype(np.int32).reshape(2, 8) @ w.astype(np.int32).reshape(2, 8).T).reshape(4)


def fcvtns_meaning(x: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(x.astype(np.float64)), -(2**31), 2**31 - 1).astype(np.int32)


INT8, INT16, INT32, FLOAT = ("int8", 16), ("int16", 8), ("int32", 4), ("float32", 4)
low, high = intrinsics.low, intrinsics.high
CASES: dict[str, tuple[Callable[..., Any], Meaning, tuple[tuple[str, int], ...], tuple[str, int]]] = {
    "smull": (lambda w, x: intrinsics.smull(low(w), low(x)), smull_meaning, (INT8, INT8), INT16),
    "smull_smlal": (
        lambda w, x: intrinsics.smull_smlal(low(w), low(x), high(w), high(x)), smlal_meaning, (INT8, INT8), INT16,
    ),
    "sadalp": (intrinsics.sadalp, sadalp_meaning, (INT32, INT16), INT32),
    "addp": (intrinsics.addp, lambda a, b: np.concatenate([a, b]).reshape(4, 2).sum(1).astype(np.int32), (INT32, INT32), INT32),
    "fcvtns": (intrinsics.fcvtns, fcvtns_meaning, (FLOAT,), INT32),
    "sdot": (intrinsics.sdot, sdot_meaning, (INT32, INT8, INT8), INT32),
    "sdot by lane": (
        lambda acc, w, x: intrinsics.sdot(acc, w, intrinsics.dup_word(x, 2)), sdot_lane_meaning, (INT32, INT8, INT8), INT32,
    ),
    "smmla": (intrinsics.smmla, smmla_meaning, (INT32, INT8, INT8), INT32),
    "zip_halves": (
        lambda a, b: intrinsics.zip_halves(a, b, 1), lambda a, b: np.concatenate([a[8:], b[8:]]), (INT8, INT8), INT8,
    ),
}  # fmt: skip
NEEDS = {"sdot": "arm-dotprod", "sdot by lane": "arm-dotprod", "smmla": "arm-i8mm"}
"""Targets of the instructions that arm-neon has not."""


def operand(dtype: str, size: int, fill: int | None, rng: np.random.Generator) -> np.ndarray:
    if dtype == "float32":
        special = [0.5, 1.5, 2.5, -0.5, -2.5, 3e9, -3e9, 16777217.0, np.inf, -np.inf, -0.0, 127.49999]
        return rng.choice(np.array(special, np.float32), size)
    bounds = np.iinfo(dtype)
    if fill is not None:
        return np.full(size, fill if dtype == "int8" else bounds.min // 2, dtype)
    return rng.integers(bounds.min // 4, bounds.max // 4, size).astype(dtype)


def samples(case: str) -> list[list[np.ndarray]]:
    """All pairs of -128, -127 and 127 (255 is stored as 127), and random operands."""
    rng = np.random.default_rng(0)
    operands = CASES[case][2]
    weights = (-127, 127) if case == "smull_smlal" else (-128, -127, 127)
    filled = [(a, b) for a in weights for b in (-128, 127)]
    result = []
    for pair in [*filled, *[None] * 20]:
        values = iter(pair or ())
        arrays = [
            operand(d, n, next(values, None) if d == "int8" else (0 if pair else None), rng)
            for d, n in operands
        ]
        if pair is None:
            arrays = [
                rng.integers(-127, 128, n).astype(np.int8) if d == "int8" else a
                for a, (d, n) in zip(arrays, operands, strict=True)
            ]
        result.append(arrays)
    return result


def kernel(case: str) -> tirx.PrimFunc:
    emit, _, operands, (dtype, size) = CASES[case]
    zero = tirx.const(0, "int32")
    buffers = [tirx.decl_buffer((n,), d, name=f"x{k}") for k, (d, n) in enumerate(operands)]
    out = tirx.decl_buffer((size,), dtype, name="out")
    value = emit(*(tirx.BufferLoad(b, [ramp(zero, n)]) for b, (_, n) in zip(buffers, operands, strict=True)))
    body = in_root_block(tirx.BufferStore(out, value, [ramp(zero, size)]))
    return tirx.PrimFunc([*buffers, out], body).with_attr("s_tir", True)


@cache
def library(folder: Path, target_name: str) -> tuple[Path, tuple[str, ...]]:
    """The kernels of all cases that ``target_name`` is for, in one model."""
    cases = tuple(c for c in CASES if NEEDS.get(c, "arm-neon") == target_name)
    builder = relax.BlockBuilder()
    inputs = [(c, k, d, n) for c in cases for k, (d, n) in enumerate(CASES[c][2])]
    parameters = [relax.Var(f"p{i}", relax.TensorType((n,), d)) for i, (_, _, d, n) in enumerate(inputs)]
    with builder.function("main", parameters):
        with builder.dataflow():
            results = []
            for case in cases:
                mine = [p for p, (c, *_) in zip(parameters, inputs, strict=True) if c == case]
                dtype, size = CASES[case][3]
                function = builder.add_func(kernel(case), "kernel")
                call = relax.call_tir(function, mine, out_ty=relax.TensorType((size,), dtype))
                results.append(builder.emit(call))
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output)
    path = folder / f"{target_name}.so"
    built = relax.build(builder.get(), registry.to_tvm(registry.resolve(target_name), 1))
    built.export_library(str(path), fcompile=link_shared)
    return path, cases


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("intrinsics")


@pytest.mark.parametrize("target_name", ["arm-neon", "arm-dotprod", "arm-i8mm"])
def test_instructions_do_what_is_said(folder: Path, target_name: str) -> None:
    path, cases = library(folder, target_name)
    if (reason := why_not_emulated()) is not None:
        pytest.skip(f"built, not run: {reason}")
    given = {case: samples(case) for case in cases}
    count = max(len(s) for s in given.values())
    runs = [[a for case in cases for a in given[case][k % len(given[case])]] for k in range(count)]
    cpu = EMULATED[registry.resolve(target_name).instruction]
    for k, outputs in enumerate(emulator.run(path, runs, family="arm", cpu=cpu)):
        for case, found in zip(cases, outputs, strict=True):
            operands = given[case][k % len(given[case])]
            np.testing.assert_array_equal(found, CASES[case][1](*operands), err_msg=f"{case} {operands}")


def test_every_target_has_its_instruction_here() -> None:
    used = {t.instruction for t in registry.known() if t.family == "arm"}
    assert used <= CASES.keys()
    assert tvm.target.codegen.llvm_version_major() >= 19  # whose names of intrinsics these are


@pytest.mark.parametrize(("cpu", "target_name"), [("cortex-a72", "arm-dotprod"), ("neoverse-n1", "arm-i8mm")])
def test_the_emulated_processor_traps_on_what_it_lacks(folder: Path, cpu: str, target_name: str) -> None:
    path, cases = library(folder, target_name)
    if (reason := why_not_emulated()) is not None:
        pytest.skip(reason)
    runs = [[a for case in cases for a in samples(case)[0]]]
    with pytest.raises(emulator.BuildError, match=r"exit status -4 under qemu-aarch64.* -cpu"):
        emulator.run(path, runs, family="arm", cpu=cpu)
