"""Each intrinsic's description and implementation, run on the values where instructions saturate."""

from __future__ import annotations

import numpy as np
import pytest
import tvm

from qcompiler.targets import registry
from qcompiler.targets.host import read_host
from qcompiler.targets.x86 import intrinsics
from qcompiler.targets.x86.features import cpuinfo_features

VARIANTS = [
    ("vpdpbusd", 16, "x86-avx512-vnni"),
    ("vpdpbusd", 8, "x86-avx512-vnni"),
    ("vpdpbusd", 16, "x86-znver4"),
    ("vpdpbusd", 8, "x86-znver4"),
    ("vpdpbusd", 8, "x86-avx-vnni"),
    ("vpdpbusd", 8, "x86-alderlake"),
    ("vpmaddwd", 16, "x86-avx512"),
    ("vpmaddwd", 8, "x86-avx512"),
    ("vpmaddwd", 16, "x86-skylake-avx512"),
    ("vpmaddwd", 8, "x86-avx2"),
    ("vpmaddwd", 8, "x86-haswell"),
    ("vpmaddwd", 8, "x86-znver3"),
]
PAIRS = [
    (255, 127),
    (255, -128),
    (255, -127),
    (128, -128),
    (0, -1),
    (1, -1),
    (255, 1),
    (127, 127),
    (128, 127),
]


def operands(lanes: int) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Inputs, weights and accumulators: constant, alternating and random ones."""
    rng = np.random.default_rng(0)
    zero = np.zeros(lanes, np.int32)
    cases = [(np.full(4, a, np.uint8), np.full((lanes, 4), b, np.int8), zero) for a, b in PAIRS]
    alternating = np.tile(np.array([-128, 127], np.int8), lanes * 2).reshape(lanes, 4)
    cases.append((np.array([255, 0, 255, 128], np.uint8), alternating, zero))
    for _ in range(20):
        start = rng.integers(-(2**30), 2**30, lanes).astype(np.int32)
        cases.append(
            (
                rng.integers(0, 256, 4).astype(np.uint8),
                rng.integers(-128, 128, (lanes, 4)).astype(np.int8),
                start,
            )
        )
    return cases


def test_all_targets_intrinsics_are_covered() -> None:
    used = {(t.instruction, t.int32_lanes) for t in registry.known() if t.family == "x86"}
    assert used <= {(instruction, lanes) for instruction, lanes, _ in VARIANTS}


@pytest.mark.parametrize(("instruction", "lanes", "name"), VARIANTS)
def test_description_and_implementation_agree_with_integers(instruction: str, lanes: int, name: str) -> None:
    target = registry.resolve(name)
    compiled = [
        tvm.compile(
            tvm.IRModule({"main": f.with_attr("global_symbol", "main")}), target=registry.to_tvm(target, 1)
        )
        for f in (intrinsics.dot4_description(lanes), getattr(intrinsics, instruction)(lanes))
    ]
    missing = set(cpuinfo_features(registry.llvm_features(target))) - read_host().features
    if missing:
        pytest.skip(f"built, not run: this CPU lacks {', '.join(sorted(missing))}")
    for a, b, c in operands(lanes):
        expected = c + b.astype(np.int32) @ a.astype(np.int32)
        for module in compiled:
            result = tvm.runtime.tensor(c)
            module["main"](tvm.runtime.tensor(a), tvm.runtime.tensor(b), result)
            np.testing.assert_array_equal(result.numpy(), expected, err_msg=f"{a} {b[0]}")


@pytest.mark.parametrize(("instruction", "lanes"), sorted({(i, n) for i, n, _ in VARIANTS}))
def test_registered_under_a_name_of_its_own(instruction: str, lanes: int) -> None:
    name = intrinsics.dot4(instruction, lanes)  # type: ignore[arg-type]
    assert name == f"qc.x86.{instruction}.{lanes}"
    registered = tvm.s_tir.TensorIntrin.get(name)
    tvm.ir.assert_structural_equal(registered.desc, intrinsics.dot4_description(lanes))
