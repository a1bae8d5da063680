"""Tables of 256 entries against torch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from qc_modules import const, dq, make
from torch.nn import functional as F
from tvm import relax

from qcompiler.passes.graph import bindings
from qcompiler.passes.quantized import Affine
from qcompiler.passes.tables import _BINARY, _UNARY, Chain

op = relax.op
Form = tuple[Callable[[Any], Any], Callable[[torch.Tensor], torch.Tensor]]
FORMS: dict[str, Form] = {
    "relax.nn.relu": (op.nn.relu, torch.relu),
    "relax.nn.silu": (op.nn.silu, F.silu),
    "relax.nn.gelu": (op.nn.gelu, F.gelu),
    "relax.nn.gelu_tanh": (op.nn.gelu_tanh, lambda x: F.gelu(x, approximate="tanh")),
    "relax.nn.leakyrelu": (lambda x: op.nn.leakyrelu(x, 0.1), lambda x: F.leaky_relu(x, 0.1)),
    "relax.nn.softplus": (lambda x: op.nn.softplus(x, 2.0, 20.0), lambda x: F.softplus(x, 2.0, 20.0)),
    "relax.clip": (lambda x: op.clip(x, -1, 2), lambda x: torch.clamp(x, -1, 2)),
    "relax.sigmoid": (op.sigmoid, torch.sigmoid),
    "relax.tanh": (op.tanh, torch.tanh),
    "relax.exp": (op.exp, torch.exp),
    "relax.log": (op.log, torch.log),
    "relax.sqrt": (op.sqrt, torch.sqrt),
    "relax.rsqrt": (op.rsqrt, torch.rsqrt),
    "relax.abs": (op.abs, torch.abs),
    "relax.negative": (op.negative, torch.neg),
    "relax.square": (op.square, torch.square),
    "relax.erf": (op.erf, torch.erf),
    "relax.floor": (op.floor, torch.floor),
    "relax.ceil": (op.ceil, torch.ceil),
    "relax.sign": (op.sign, torch.sign),
    "relax.sin": (op.sin, torch.sin),
    "relax.cos": (op.cos, torch.cos),
    "relax.add": (lambda x: op.add(x, const(3.0, "float32")), lambda x: x + 3),
    "relax.subtract": (lambda x: op.subtract(const(3.0, "float32"), x), lambda x: 3 - x),
    "relax.multiply": (lambda x: op.multiply(x, x), lambda x: x * x),
    "relax.divide": (lambda x: op.divide(x, const(6.0, "float32")), lambda x: x / 6),
    "relax.maximum": (lambda x: op.maximum(x, const(0.5, "float32")), lambda x: torch.clamp(x, min=0.5)),
    "relax.minimum": (lambda x: op.minimum(x, const(0.5, "float32")), lambda x: torch.clamp(x, max=0.5)),
    "relax.power": (lambda x: op.power(x, const(2.0, "float32")), lambda x: x**2),
}
POSITIVE = {"relax.log", "relax.sqrt", "relax.rsqrt"}


def chain(build: Callable[..., Any], *shapes: tuple[int, ...]) -> Chain:
    """The chain that ends in the module's last computed value."""
    module = make(build, *((s, "uint8") for s in shapes))
    bound = {b.var: b.value for b in bindings(module)}
    last = [b.var for b in bindings(module) if isinstance(b.value, relax.Call)][-1]
    return Chain(last, lambda e: bound.get(e, e) if isinstance(e, relax.Var) else e)


def test_every_operator_is_covered() -> None:
    assert set(FORMS) == set(_UNARY) | set(_BINARY)


@pytest.mark.parametrize(
    "source", [Affine(0.05, 128), Affine(0.3, 17), Affine(0.001, 0), Affine(2.0, 255)], ids=str
)
@pytest.mark.parametrize("name", FORMS)
def test_table(name: str, source: Affine) -> None:
    form, expected = FORMS[name]
    if name in POSITIVE:
        source = Affine(source.scale, -1)  # every value is positive
    scale = float(np.float32(source.scale))
    found = chain(lambda e, x: form(e(dq(x, scale, source.zero_point))), (2, 8))
    x = torch.arange(256, dtype=torch.float64).sub(source.zero_point).mul(scale)
    reals = expected(x).numpy()
    out = Affine(float(np.ptp(reals)) / 300 or 1.0, 100)
    table = found.table(out)
    if not np.isfinite(reals).all():
        assert table is None
        return
    assert table is not None
    assert found.length == 1
    exact = np.clip(reals / out.scale + out.zero_point, 0, 255)
    assert np.abs(table - exact).max() <= 0.5 + 1e-6


def test_a_chain_may_use_its_source_often() -> None:
    def hard_swish(emit, x):  # type: ignore[no-untyped-def]
        gate = emit(op.clip(emit(op.add(emit(dq(x, 0.05, 128)), const(3.0, "float32"))), 0, 6))
        return op.divide(emit(op.multiply(emit(dq(x, 0.05, 128)), gate)), const(6.0, "float32"))

    table = chain(hard_swish, (4, 4)).table(Affine(0.05, 10))
    x = torch.arange(256, dtype=torch.float64).sub(128).mul(float(np.float32(0.05)))
    exact = np.clip(F.hardswish(x).numpy() / 0.05 + 10, 0, 255)
    assert table is not None
    assert np.abs(table - exact).max() <= 0.5 + 1e-5


def test_values_that_are_not_finite_make_no_table() -> None:
    assert chain(lambda e, x: op.log(e(dq(x, 0.1, 5))), (4, 4)).table(Affine(0.1, 0)) is None


def test_two_sources_make_no_chain() -> None:
    both = chain(lambda e, a, b: op.add(e(dq(a, 0.1, 5)), e(dq(b, 0.1, 5))), (4, 4), (4, 4))
    assert both.table(Affine(0.1, 0)) is None


def test_one_source_of_two_scales_makes_no_chain() -> None:
    assert (
        chain(lambda e, a: op.add(e(dq(a, 0.1, 5)), e(dq(a, 0.2, 5))), (4, 4)).table(Affine(0.1, 0)) is None
    )


def test_a_constant_of_many_elements_makes_no_chain() -> None:
    assert chain(lambda e, a: op.add(e(dq(a, 0.1, 5)), const(np.ones(4), "float32")), (4, 4)).outputs is None
