"""Matrix products against the reference interpreter, in every bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qc_modules import ARM_TARGETS, CUDA_TARGET, TARGETS, Case, Suite, const
from tvm import relax

from qcompiler import operators


def dense(
    name: str, rows: tuple[int, ...], k: int, out: int, *, residual: bool = False, dtype: str = "uint8",
    extreme: bool = False, bounds: tuple[int, int] = (0, 255),
) -> Case:  # fmt: skip
    rng = np.random.default_rng(len(name))
    if extreme:
        weight = np.broadcast_to(np.where(np.arange(out) % 2, 127, -127).reshape(-1, 1), (out, k)).astype(
            np.int8
        )
    else:
        weight = rng.integers(-127, 128, (out, k)).astype(np.int8)
    bias = rng.integers(-(2**15), 2**15, out).astype(np.int32)
    multiplier = (rng.uniform(0.2, 1.0, out) / (100 * np.sqrt(k))).astype(np.float32)
    inputs: list[Any] = [((*rows, k), "uint8")]
    constants = []
    if residual:
        inputs.append(((*rows, out), "uint8"))
        constants = [rng.integers(0, 2**14, out).astype(np.int32)]
        constants.append((-201 * constants[0]).astype(np.int32))
    bound = int(
        255 * np.abs(weight.astype(int)).sum(1).max() + np.abs(bias).max() + (256 * 2**14 if residual else 0)
    )

    def build(_: Any, x: relax.Expr, *more: relax.Expr) -> relax.Expr:
        args = [x, const(weight), const(bias), const(multiplier), *more, *(const(c) for c in constants)]
        return operators.call(
            "qc.dense", args, zero_point=128, lo=bounds[0], hi=bounds[1], residual_shift=0, out_dtype=dtype,
            accumulator_bound=bound,
        )  # fmt: skip

    return Case(name, tuple(inputs), build)


SUITE = Suite(
    [
        *(dense(f"{rows} rows", (rows,), 64, 48) for rows in (1, 2, 7, 13, 33)),
        *(dense(f"K of {k}", (3,), k, 32) for k in (1, 2, 3, 5, 30, 127)),
        *(dense(f"{out} outputs", (2,), 20, out) for out in (1, 3, 10, 17, 100)),
        dense("extreme weights", (5,), 1024, 64, extreme=True),
        dense("float32", (3,), 37, 10, dtype="float32"),
        dense("residual", (7,), 33, 24, residual=True),
        dense("residual to float32", (7,), 33, 24, residual=True, dtype="float32"),
        dense("bounds", (4,), 16, 16, bounds=(128, 200)),
    ]
)


@pytest.mark.parametrize("target", [*TARGETS, *ARM_TARGETS, CUDA_TARGET])
@pytest.mark.parametrize("name", SUITE.cases)
def test_equals_the_reference(name: str, target: str) -> None:
    SUITE.check(name, target)


DEEP = Suite(
    [dense("three axes", (2, 5), 24, 40), dense("three axes, residual", (2, 5), 24, 40, residual=True)]
)


@pytest.mark.parametrize("name", DEEP.cases)
def test_more_axes_than_two(name: str) -> None:
    DEEP.check(name, "native")
