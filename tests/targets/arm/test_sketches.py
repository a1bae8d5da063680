"""Whatever tuning decides, the kernels compute the same; and logs know kernels by what matters for their speed."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
import tvm_ffi
from hypothesis import given, settings
from hypothesis import strategies as st
from qc_modules import ARM_TARGETS, Emit, build, const, make, reference, run, samples, why_not_emulated
from tvm import relax
from tvm.s_tir import Schedule

from qcompiler.driver.tuning.neutral import neutral
from qcompiler.operators import call
from qcompiler.targets import registry
from qcompiler.targets.arm.decisions import dense_decision, loads_halves
from qcompiler.targets.arm.finish import Epilogue
from qcompiler.targets.arm.requantization import Requantization
from qcompiler.targets.arm.sketches import DENSE, Problem, dense_workload, depthwise_workload
from qcompiler.targets.cpu.shapes import ConvShape
from qcompiler.targets.workload import Scheduled, Workload, finish, sketched

SHAPE = ConvShape(1, 12, 11, 20, 52, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 1)


def workload(target: str, *, zero_point: int = 3, paired: bool = True) -> Workload:
    found = registry.resolve(target)
    decision = dense_decision(found, SHAPE)
    epilogue = Epilogue(Requantization(zero_point, 0, 255), None)
    problem = Problem(
        SHAPE, epilogue, found.instruction, decision.vectors, False, paired, loads_halves(found), 10**6
    )
    return dense_workload(problem, found, decision)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.builds(
        Problem,
        st.builds(
            ConvShape, st.integers(1, 3), st.integers(1, 300), st.integers(1, 300), st.integers(1, 3000),
            st.integers(1, 3000), st.tuples(st.integers(1, 7), st.integers(1, 7)),
            st.tuples(st.integers(1, 3), st.integers(1, 3)), st.just((0, 0, 0, 0)),
            st.tuples(st.integers(1, 2), st.integers(1, 2)), st.integers(1, 3000),
        ),
        st.builds(
            Epilogue,
            st.one_of(
                st.none(), st.builds(Requantization, st.integers(0, 255), st.integers(0, 255), st.integers(0, 255))
            ),
            st.one_of(st.none(), st.integers(0, 20)),
        ),
        st.sampled_from(["smull", "sdot", "smmla"]), st.integers(0, 8), st.booleans(), st.booleans(),
        st.booleans(), st.integers(0, 2**31 - 1),
    )
)  # fmt: skip
def test_problems_survive_an_annotation(given_problem: Problem) -> None:
    assert Problem.decode(given_problem.encode()) == given_problem


@pytest.mark.parametrize("target", ARM_TARGETS)
def test_stand_in_and_kernel_have_the_same_arguments(target: str) -> None:
    for known in (workload(target), depthwise_workload(problem_of_depthwise(target))):
        for index in range(len(known.sketches)):
            kernel = finish(sketched(known, index))
            wanted, found = (
                [([int(d) for d in b.shape], str(b.dtype)) for b in function.params]
                for function in (known.function, kernel)
            )
            assert found == wanted


def problem_of_depthwise(target: str) -> Problem:
    shape = ConvShape(1, 12, 11, 40, 40, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 40)
    epilogue = Epilogue(Requantization(3, 0, 255), None)
    return Problem(shape, epilogue, registry.resolve(target).instruction, 0, False, True, False, 10**6)


@pytest.mark.parametrize("zero_points", [(3, 7), (0, 128), (255, 0)])
def test_a_log_knows_kernels_without_their_constants(zero_points: tuple[int, int]) -> None:
    one, two = (workload("arm-dotprod", zero_point=z) for z in zero_points)
    assert tvm_ffi.structural_equal(neutral(one).function, neutral(two).function)
    assert not tvm_ffi.structural_equal(one.function, two.function)


def test_a_kernel_for_tame_weights_does_not_serve_others() -> None:
    one, two = (workload("arm-neon", paired=p) for p in (True, False))
    assert not tvm_ffi.structural_equal(one.function, two.function)
    assert not tvm_ffi.structural_equal(neutral(one).function, neutral(two).function)


def test_every_number_of_vectors_and_both_orders_are_searched() -> None:
    known = workload("arm-dotprod")
    structures = set()
    for index in range(len(known.sketches)):
        sch = sketched(known, index)
        structures.add(
            tuple(int(v) for v in sch.get(sch.get_sblock("out")).annotations[f"{DENSE}.structure"])
        )
    assert {order for _, order in structures} == {0, 1}
    assert len({vectors for vectors, _ in structures}) > 2
    assert len(structures) == len(known.sketches)
    assert known.tunable


def network() -> tvm.IRModule:
    """Kernels of every kind, with channels and pixels that fill no tile."""
    rng = np.random.default_rng(0)

    def convolution(
        x: relax.Expr, out: int, per_group: int, kernel: int, groups: int, *residual: relax.Expr
    ) -> relax.Call:
        weight = rng.integers(-128, 128, (out, per_group, kernel, kernel)).astype(np.int8)
        rest = [const(rng.integers(-999, 999, out).astype(np.int32)), const(np.full(out, 2e-4, np.float32))]
        if residual:
            rest += [*residual, const(np.full(out, 900, np.int32)), const(np.full(out, -7, np.int32))]
        return call(
            "qc.conv2d", [x, const(weight), *rest], strides=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=groups,
            layout="NCHW", pad_value=0, zero_point=5, lo=0, hi=255, residual_shift=3, out_dtype="uint8",
            accumulator_bound=2**24,
        )  # fmt: skip

    def body(emit: Emit, x: relax.Var) -> tuple[relax.Expr, ...]:
        wide = emit(convolution(x, 52, 21, 3, 1))
        return (
            emit(convolution(wide, 52, 52, 1, 1, wide)),
            emit(convolution(wide, 36, 13, 3, 4)),
            emit(convolution(wide, 52, 1, 3, 52)),
        )

    return make(body, ((1, 21, 9, 10), "uint8"))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("target", [*ARM_TARGETS, "arm-cortex-a55"])
def test_any_decisions_give_the_reference_s_bits(target: str, seed: int) -> None:
    if (reason := why_not_emulated()) is not None:
        pytest.skip(reason)
    rng = np.random.default_rng(seed)
    chosen: list[str] = []

    def any_schedule(known: Workload) -> Scheduled:
        sch = sketched(known, int(rng.integers(len(known.sketches))))
        trace = sch.trace.simplified(True)
        for inst in trace.insts:
            if str(inst.kind.name) == "SampleCategorical":
                trace = trace.with_decision(inst, int(rng.integers(len(inst.attrs[0]))), False)
                chosen.append(known.operator)
        result = Schedule(known.module)
        trace.apply_to_schedule(result, False)
        return Scheduled(finish(result), "tuned")

    module = network()
    built = build(module, registry.resolve(target), any_schedule)
    assert set(chosen) == {"conv2d", "depthwise_conv2d"}
    given_samples = samples([(((1, 21, 9, 10), "uint8"), 1.0)])
    for found, wanted in zip(run(built, given_samples), reference(module, given_samples), strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
