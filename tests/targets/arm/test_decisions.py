"""Tiles without tuning: they fit the registers, whatever the layer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.targets import registry
from qcompiler.targets.arm.decisions import WEIGHTS, dense_decision, live_limit
from qcompiler.targets.arm.products import products
from qcompiler.targets.base import Target
from qcompiler.targets.cpu.shapes import ConvShape

ARM = [t for t in registry.known() if t.family == "arm"]


def shape(size: int, c: int, o: int, kernel: int) -> ConvShape:
    return ConvShape(1, size, size, c, o, (kernel, kernel), (1, 1), (0, 0, 0, 0), (1, 1), 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from(ARM),
    st.integers(3, 60),
    st.integers(1, 600),
    st.integers(1, 2100),
    st.sampled_from([1, 3]),
)
def test_tiles_fit_the_registers(target: Target, size: int, c: int, o: int, kernel: int) -> None:
    layer = shape(size, c, o, kernel)
    decision = dense_decision(target, layer)
    used = products(target.instruction).registers(decision.columns, decision.vectors)
    assert 0 < used + decision.columns + WEIGHTS <= live_limit(target)
    assert decision.columns <= layer.out_height * layer.out_width
    assert (decision.vectors - 1) * 4 < o


@pytest.mark.parametrize(
    ("name", "tile"),
    [
        ("arm-neon", (1, 8)),
        ("arm-dotprod", (5, 4)),
        ("arm-i8mm", (2, 8)),
        ("arm-neoverse-v1", (4, 4)),
        ("arm-cortex-a55", (9, 2)),
    ],
)
def test_tiles_of_a_large_layer(name: str, tile: tuple[int, int]) -> None:
    decision = dense_decision(registry.resolve(name), shape(58, 64, 64, 3))
    assert (decision.columns, decision.vectors) == tile


def test_the_larger_operand_is_read_once() -> None:
    target = registry.resolve("arm-dotprod")
    assert dense_decision(target, shape(7, 512, 512, 3)).channel_major
    assert not dense_decision(target, shape(58, 64, 64, 3)).channel_major
