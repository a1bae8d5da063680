"""Float kernels against sums in float64, within the bound that holds for sums in any order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import inf

import numpy as np
import pytest
import torch
from qc_modules import build, const, make, run, runs_here
from tvm import relax

from qcompiler import operators
from qcompiler.targets import registry
from qcompiler.targets.x86 import floats

TARGETS = ("native", "x86-avx512", "x86-avx2")
"""One of each width, and this machine's: the integer instructions of a target make no difference here."""

UNIT = 2.0**-24
"""Unit roundoff of float32."""


@dataclass(frozen=True)
class Conv:
    """A convolution to compare; ``padding`` is that of all sides, ``residual`` adds one, and ``lo`` is a lower bound."""

    shape: tuple[int, int, int, int]
    out: int
    kernel: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1
    residual: bool = False
    lo: float = -inf
    hi: float = inf

    @property
    def weight(self) -> np.ndarray:
        rng = np.random.default_rng(self.out)
        return rng.standard_normal((self.out, self.shape[1] // self.groups, self.kernel, self.kernel)).astype(
            np.float32
        )

    @property
    def bias(self) -> np.ndarray:
        return np.linspace(-1, 1, self.out, dtype=np.float32)

    @property
    def output(self) -> tuple[int, ...]:
        return tuple(self.exact(np.zeros(self.shape), self.weight, self.bias).shape)

    def exact(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """The sums in float64, before residual and bounds."""
        tensors = [torch.from_numpy(np.asarray(a, np.float64)) for a in (x, weight, bias)]
        return torch.conv2d(*tensors, self.stride, self.padding, self.dilation, self.groups).numpy()


CASES = {
    "1x1": Conv((1, 64, 7, 7), 32),
    "3x3": Conv((1, 16, 9, 11), 48, 3, padding=1, lo=0.0),
    "a first layer": Conv((1, 3, 17, 15), 32, 7, stride=2, padding=3),
    "batch": Conv((2, 8, 5, 6), 16, 3),
    "odd channels": Conv((1, 5, 6, 5), 13, 3, padding=1, lo=-0.5, hi=0.5),
    "dilation": Conv((1, 8, 9, 9), 16, 3, padding=2, dilation=2),
    "groups": Conv((1, 16, 6, 6), 48, 3, padding=1, groups=4),
    "residual": Conv((1, 24, 7, 5), 40, 3, padding=1, residual=True, lo=0.0),
    "depthwise": Conv((1, 32, 9, 8), 32, 3, padding=1, groups=32, lo=0.0, hi=6.0),
    "depthwise, odd": Conv((1, 21, 7, 7), 21, 5, stride=2, padding=2, groups=21, residual=True),
}
SMALL = ("1x1", "a first layer", "odd channels", "groups", "residual", "depthwise")
"""Cases of the precisions of 16 bits, whose loops are the same."""
DENSE = {"one row": (1, 64, 10), "rows": (13, 30, 33), "long": (3, 1024, 16)}


@cache
def outputs(target_name: str, precision: str) -> dict[str, tuple[list[np.ndarray], np.ndarray]]:
    """The inputs and the output of every case, compiled together."""
    target = registry.resolve(target_name)
    cases = {name: case for name, case in CASES.items() if precision == "float32" or name in SMALL}
    bits = precision == "bfloat16" and target.bf16_macs_per_cycle > 0

    def network(emit, *parameters):  # type: ignore[no-untyped-def]
        rest, results = list(parameters), []

        def operand() -> relax.Var:
            x = rest.pop(0)
            return emit(operators.call("qc.to_bfloat16", [x])) if bits else x

        common = {"precision": precision, "out_dtype": "float32"}
        for case in cases.values():
            operands = [operand(), const(case.weight), const(case.bias)]
            if case.residual:
                operands.append(rest.pop(0))
            results.append(
                operators.call(
                    "qc.float_conv2d", operands, strides=[case.stride] * 2, padding=[case.padding] * 4,
                    dilation=[case.dilation] * 2, groups=case.groups, layout="NCHW", lo=case.lo, hi=case.hi, **common,
                )
            )  # fmt: skip
        for rows, k, out in DENSE.values():
            operands = [operand(), *(const(a) for a in matrix(rows, k, out))]
            results.append(operators.call("qc.float_dense", operands, lo=-inf, hi=inf, **common))
        return tuple(results)

    shapes = {
        **{name: [case.shape, *([case.output] if case.residual else [])] for name, case in cases.items()},
        **{name: [(rows, k)] for name, (rows, k, _) in DENSE.items()},
    }
    rng = np.random.default_rng(0)
    inputs = {
        name: [rng.standard_normal(s).astype(np.float32) for s in each] for name, each in shapes.items()
    }
    built = build(make(network, *((s, "float32") for each in shapes.values() for s in each)), target)
    if not runs_here(target):
        return {}
    (found,) = run(built, [[array for each in inputs.values() for array in each]])
    return {name: (inputs[name], array) for name, array in zip(shapes, found, strict=True)}


def matrix(rows: int, k: int, out: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(k)
    return rng.standard_normal((out, k)).astype(np.float32), rng.standard_normal(out).astype(np.float32)


def result(name: str, target: str, precision: str) -> tuple[list[np.ndarray], np.ndarray]:
    found = outputs(target, precision)
    if not found:
        pytest.skip(f"built, not run: this CPU lacks features of {target}")
    return found[name]


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    if precision == "float32":
        return x.astype(np.float64)
    if precision == "int8_weights":
        scale = np.abs(x.reshape(len(x), -1)).max(1).reshape(-1, *(1,) * (x.ndim - 1)) / np.float32(127)
        return np.rint(x / scale) * scale.astype(np.float64)
    return torch.from_numpy(x).to(getattr(torch, precision)).double().numpy()


def read(x: np.ndarray, target: str, precision: str) -> np.ndarray:
    """Activations as a kernel reads them: only ``vdpbf16ps`` takes them in 16 bits."""
    bits = precision == "bfloat16" and registry.resolve(target).bf16_macs_per_cycle > 0
    return rounded(x, precision) if bits else x.astype(np.float64)


def bound(terms: int, magnitude: np.ndarray) -> np.ndarray:
    """How far a float32 sum of ``terms`` rounded products may be from the exact one: n u / (1 - n u) times the sum of
    their magnitudes, whatever the order (Higham, Accuracy and Stability of Numerical Algorithms, 4.2)."""
    return terms * UNIT / (1 - terms * UNIT) * magnitude


SIXTEEN_BITS = [(t, p) for t in ("native", "x86-avx2") for p in ("bfloat16", "float16", "int8_weights")]
CONVOLUTIONS = [
    *((name, target, "float32") for name in CASES for target in TARGETS),
    *((name, *how) for name in SMALL for how in SIXTEEN_BITS),
]
PRODUCTS = [(name, *how) for name in DENSE for how in (*((t, "float32") for t in TARGETS), *SIXTEEN_BITS)]


@pytest.mark.parametrize(("name", "target", "precision"), CONVOLUTIONS)
def test_convolutions(name: str, target: str, precision: str) -> None:
    (x, *residual), found = result(name, target, precision)
    case = CASES[name]
    x, weight, bias = read(x, target, precision), rounded(case.weight, precision), case.bias
    wanted = case.exact(x, weight, bias) + sum(residual)
    magnitude = case.exact(np.abs(x), np.abs(weight), np.abs(bias)) + sum(np.abs(r) for r in residual)
    terms = case.weight[0].size + 3  # bias, residual, and a scale
    assert (np.abs(found - np.clip(wanted, case.lo, case.hi)) <= bound(terms, magnitude)).all()


@pytest.mark.parametrize(("name", "target", "precision"), PRODUCTS)
def test_matrix_products(name: str, target: str, precision: str) -> None:
    (x,), found = result(name, target, precision)
    weight, bias = matrix(*DENSE[name])
    x, weight = read(x, target, precision), rounded(weight, precision)
    magnitude = np.abs(x) @ np.abs(weight.T) + np.abs(bias)
    assert (np.abs(found - (x @ weight.T + bias)) <= bound(DENSE[name][1] + 2, magnitude)).all()


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_the_inner_loop_has_the_chip_s_instruction(target: str, precision: str) -> None:
    chip = registry.resolve(target)
    bits = precision == "bfloat16" and chip.bf16_macs_per_cycle > 0
    weight = np.ones((64, 64, 1, 1), np.float32)
    call = operators.call(
        "qc.float_conv2d",
        [relax.Var("x", relax.TensorType((1, 7, 7, 64), "uint16" if bits else "float32")), const(weight), const(weight[:, 0, 0, 0])],
        strides=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=1, layout="NHWC", lo=-inf, hi=inf,
        precision=precision, out_dtype="float32",
    )  # fmt: skip
    lowered = floats.lower_conv2d(relax.BlockBuilder().normalize(call), chip)
    assert lowered.instruction == ("vdpbf16ps" if bits else "vfmadd231ps")
    assert lowered.reason is None
