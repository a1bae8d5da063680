"""Sketches of the implicit matrix product: what a log knows a kernel by computes what the kernel computes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import gpu_simulator
import numpy as np
import pytest
import tvm
import tvm_ffi
from tvm.s_tir import Schedule

from qcompiler.driver.gpu import embed
from qcompiler.driver.tuning.neutral import neutral
from qcompiler.targets import cuda, registry
from qcompiler.targets.cpu.shapes import ConvShape
from qcompiler.targets.cuda import decisions
from qcompiler.targets.cuda.finish import Epilogue, Requantization
from qcompiler.targets.cuda.gemm import Tile
from qcompiler.targets.cuda.layouts import pack_fragments
from qcompiler.targets.cuda.schedules import schedule_sums
from qcompiler.targets.cuda.sketches import Problem, gemm_workload, stand_in, tiles
from qcompiler.targets.workload import GENERATOR, finish, sketched

TILE = Tile(32, 32, (1, 1), 2)
CONV = ConvShape(2, 5, 6, 20, 70, (3, 2), (1, 2), (1, 0, 2, 1), (1, 1), 2)
MATRIX = ConvShape(1, 1, 9, 70, 40, (1, 1), (1, 1), (0,) * 4, (1, 1), 1)
PROBLEMS = {
    "convolution": Problem(CONV, Epilogue(Requantization(3, 0, 255), None), 255, False),
    "residual": Problem(CONV, Epilogue(Requantization(0, 2, 200), 8), 7, False),
    "matrix": Problem(MATRIX, Epilogue(Requantization(9, 9, 255), None), 0, True),
    "real": Problem(MATRIX, Epilogue(None, None), 0, True),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_a_problem_is_the_same_after_an_annotation(problem: Problem) -> None:
    assert Problem.decode(problem.encode()) == problem


def test_stand_ins_compute_what_kernels_do(tmp_path: Path) -> None:
    """Weights of -128 and 127 among random ones; the stand-in has a thread an output."""
    if gpu_simulator.why_not():
        pytest.skip(str(gpu_simulator.why_not()))
    functions = {}
    for name, problem in PROBLEMS.items():
        plain = Schedule(stand_in(problem, TILE).without_attr(GENERATOR))
        schedule_sums(plain)
        functions[f"plain_{name}"] = plain.mod["main"]
        functions[f"kernel_{name}"] = problem.gemm(TILE).function()
    named = {k: f.with_attr("global_symbol", k) for k, f in functions.items()}
    with embed.source_only():
        executable = tvm.compile(tvm.IRModule(named), target=registry.to_tvm(cuda.SM80, 1))
    gpu_simulator.export(executable, tmp_path / "kernels.so")
    rng = np.random.default_rng(0)
    for name, problem in PROBLEMS.items():
        s, arguments = problem.shape, []
        weight = rng.choice([-128, 127, 1, -5], (s.out_channels, s.in_channels // s.groups, *s.kernel))
        for buffer in functions[f"kernel_{name}"].params:
            shape, dtype = [int(d) for d in buffer.shape], str(buffer.dtype)
            if buffer.name == "weight":
                depth = problem.gemm(TILE).packed_depth
                arguments.append(pack_fragments(weight.astype(np.int8), s.groups, depth))
            elif dtype == "float32":
                arguments.append(rng.uniform(1e-5, 1e-3, shape).astype(np.float32))
            else:
                arguments.append(rng.integers(0, 256, shape).astype(dtype))
        plain_output, kernel_output = gpu_simulator.call(
            tmp_path / "kernels.so", [f"plain_{name}", f"kernel_{name}"], arguments
        )
        assert len(np.unique(kernel_output)) > 3
        np.testing.assert_array_equal(plain_output, kernel_output, err_msg=name)


def test_a_log_knows_a_kernel_whatever_its_constants() -> None:
    def known(problem: Problem) -> int:
        return int(tvm_ffi.structural_hash(neutral(gemm_workload(problem, cuda.SM80, TILE)).function))

    one = PROBLEMS["residual"]
    other = replace(one, epilogue=Epilogue(Requantization(77, 0, 255), 9), pad_value=0)
    assert known(one) == known(other)
    assert known(one) != known(replace(one, shape=replace(CONV, strides=(1, 1), padding=(1, 0, 2, 1))))


@pytest.mark.parametrize("shape", [CONV, MATRIX], ids=["convolution", "matrix"])
def test_tiles_fit_the_gpu_and_begin_with_the_default(shape: ConvShape) -> None:
    default = decisions.choose_tile(shape, cuda.SM75)
    found = tiles(shape, cuda.SM75, default)
    assert found[0] == default
    assert len(found) == len({(t.rows, t.columns, t.warps) for t in found}) > 2
    for tile in found:
        assert tile.threads <= cuda.SM75.block_threads
        assert tile.shared_bytes <= cuda.SM75.shared_bytes


def test_the_first_sketch_is_the_default_kernel() -> None:
    problem = PROBLEMS["residual"]
    default = decisions.choose_tile(CONV, cuda.SM90)
    made = finish(sketched(gemm_workload(problem, cuda.SM90, default), 0))
    assert tvm_ffi.structural_equal(made, problem.gemm(default).function())
