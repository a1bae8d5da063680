"""Decisions fit the registers of every target, and follow from its description."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.targets import registry, x86
from qcompiler.targets.base import Target
from qcompiler.targets.cpu.shapes import divisor_at_most
from qcompiler.targets.x86.decisions import (
    accumulator_budget,
    choose_lanes,
    conv_decision,
    conv_decisions,
    depthwise_tile,
    sampled_width,
)

X86 = [t for t in registry.known() if t.family == "x86"]


@pytest.mark.parametrize("target", X86, ids=lambda t: t.name)
@settings(deadline=None, derandomize=True, max_examples=30)
@given(
    width=st.integers(1, 300), blocks=st.integers(1, 130), steps=st.integers(1, 5000), size=st.integers(1, 1 << 24)
)  # fmt: skip
def test_tiles_stay_in_registers(target: Target, width: int, blocks: int, steps: int, size: int) -> None:
    default = conv_decision(
        accumulator_budget(target), width, blocks, steps, weight_bytes=size, input_bytes=1 << 20
    )
    assert 1 <= default.tile_width <= width
    assert default.tile_width * default.tile_blocks <= accumulator_budget(target) < target.vector_registers
    assert default.channel_major == (size > 1 << 20)
    computed = -(-width // default.tile_width) * default.tile_width
    starts = conv_decisions(target, accumulator_budget(target), default, computed, blocks, steps)
    assert starts[0] == default
    assert len({(d.tile_blocks, d.channel_major) for d in starts}) == len(starts)
    for decision in starts:
        assert blocks % decision.tile_blocks == 0
        assert computed % decision.tile_width == 0
        widest = max(sampled_width(target, decision.tile_blocks), decision.tile_width)
        assert widest * decision.tile_blocks <= target.vector_registers - 2


@pytest.mark.parametrize("target", X86, ids=lambda t: t.name)
def test_lanes_are_the_vector_or_half_of_it(target: Target) -> None:
    for channels in range(1, 200):
        lanes = choose_lanes(target, channels)
        assert lanes in (target.int32_lanes, target.int32_lanes // 2)
        assert lanes >= 8
        if channels % target.int32_lanes == 0:
            assert lanes == target.int32_lanes


def test_half_vectors_where_they_cost_half() -> None:
    cheap = replace(x86.AVX512_VNNI, half_vector_cost=1.0)
    dear = replace(x86.AVX512_VNNI, half_vector_cost=2.0)
    assert choose_lanes(cheap, 24) == 8
    assert choose_lanes(dear, 24) == 16
    assert choose_lanes(x86.AVX2, 4) == 8


@pytest.mark.parametrize("target", X86, ids=lambda t: t.name)
def test_depthwise_tiles_stay_in_registers(target: Target) -> None:
    for width in range(1, 120):
        assert 1 <= depthwise_tile(target, width) <= min(width, target.vector_registers // 4)


@given(st.integers(1, 5000), st.integers(1, 200))
def test_divisor_at_most(n: int, limit: int) -> None:
    divisor = divisor_at_most(n, limit)
    assert n % divisor == 0
    assert divisor <= limit
    assert not any(n % d == 0 for d in range(divisor + 1, min(n, limit) + 1))
