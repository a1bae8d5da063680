"""What a kernel to tune is given, and what it must compute."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tvm
from qc_modules import const, make, reference
from small_tuning import module, physical
from tvm import relax
from tvm.ir import Constant

from qcompiler.driver.tuning.tasks import Prepared, extract, prepare
from qcompiler.operators import call
from qcompiler.targets import registry
from qcompiler.targets.base import Target


def product() -> tvm.IRModule:
    """A matrix product of random weights and constant activations."""
    rng = np.random.default_rng(0)
    layer = call(
        "qc.dense",
        [
            const(rng.integers(0, 256, (6, 32), np.uint8)),
            const(rng.integers(-127, 128, (20, 32)).astype(np.int8)),
            const(rng.integers(-1000, 1000, 20).astype(np.int32)),
            const(np.full(20, 1e-3, np.float32)),
        ],
        zero_point=9, lo=0, hi=255, residual_shift=0, out_dtype="uint8", accumulator_bound=2**24,
    )  # fmt: skip
    return make(lambda emit, x: emit(layer), ((1,), "uint8"))


def expected(prepared: Prepared, target: Target) -> np.ndarray:
    """What the kernel must give, as q."""
    with np.load(prepared.data) as data:
        stored = data["expected"]
    return stored.view(np.uint8) ^ np.uint8(128) if target.family == "arm" else stored


@pytest.mark.parametrize("name", ["native", "arm-neon", "arm-cortex-a55"])
def test_activations_may_be_constant(name: str, tmp_path: Path) -> None:
    target = registry.resolve(name)
    (task,) = extract(physical(product(), target=target))
    assert isinstance(task.tunable.call.args[0], Constant)
    ((wanted,),) = reference(product(), [(np.zeros(1, np.uint8),)])
    found = expected(prepare(task, tmp_path / "task", target.l2_bytes), target)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("name", ["native", "arm-dotprod"])
def test_those_of_a_convolution_too(name: str, tmp_path: Path) -> None:
    """The same numbers as an input and as a constant."""
    target = registry.resolve(name)
    _, task = extract(physical(module(), target=target))
    layer, x = task.tunable.call, task.tunable.call.args[0]
    given = prepare(task, tmp_path / "given", target.l2_bytes)
    with np.load(given.data) as data:
        fixed = relax.const(data["a0"].reshape([int(d) for d in x.ty.shape]))
    tunable = replace(
        task.tunable,
        call=relax.Call(layer.op, [fixed, *layer.args[1:]], layer.attrs),
        args=[fixed, *task.tunable.args[1:]],
    )
    found = prepare(replace(task, tunable=tunable), tmp_path / "fixed", target.l2_bytes)
    np.testing.assert_array_equal(expected(found, target), expected(given, target))
