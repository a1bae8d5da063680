"""Packed weights mean the same as the weights they were packed from."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.targets.cpu.channels import channel_blocks, pack_channels
from qcompiler.targets.x86.layouts import pack_depthwise_weight, pack_weight


@st.composite
def cuts(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """Input channels, output channels, groups, lanes."""
    groups = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 12]))
    return (
        groups * draw(st.integers(1, 9)),
        groups * draw(st.integers(1, 40)),
        groups,
        draw(st.sampled_from([8, 16])),
    )


@settings(deadline=None, derandomize=True)
@given(cuts())
def test_a_product_with_packed_weights_is_the_grouped_product(cut: tuple[int, int, int, int]) -> None:
    in_channels, out_channels, groups, lanes = cut
    rng = np.random.default_rng(0)
    blocks = channel_blocks(in_channels, out_channels, groups, lanes)
    weight = rng.integers(-128, 128, (out_channels, in_channels // groups, 2, 1)).astype(np.int8)
    packed = pack_weight(weight, groups, blocks).astype(np.int64)
    assert packed.shape == (blocks.blocks, 2, 1, blocks.k_blocks, lanes, 4)
    # More channels than x has may be read: what stands there must not matter.
    x = rng.integers(0, 256, in_channels + blocks.k_blocks * 4)
    out = np.zeros((blocks.blocks * lanes, 2), np.int64)
    for block in range(blocks.blocks):
        first = block // blocks.blocks_per_group * blocks.group_inputs
        read = x[first : first + blocks.k_blocks * 4].reshape(blocks.k_blocks, 4)
        out[block * lanes : (block + 1) * lanes] = np.einsum("hwkli,ki->lh", packed[block], read)
    per_group, inputs = out_channels // groups, in_channels // groups
    for o in range(out_channels):
        group = o // per_group
        expected = np.einsum("ihw,i->h", weight[o].astype(np.int64), x[group * inputs : (group + 1) * inputs])
        np.testing.assert_array_equal(out[o], expected, err_msg=f"channel {o}")
    assert not out[out_channels:].any()


@settings(deadline=None, derandomize=True)
@given(cuts())
def test_no_block_crosses_a_border_between_merged_groups(cut: tuple[int, int, int, int]) -> None:
    in_channels, out_channels, groups, lanes = cut
    blocks = channel_blocks(in_channels, out_channels, groups, lanes)
    assert groups % blocks.merged == 0
    assert blocks.blocks == blocks.blocks_per_group * (groups // blocks.merged)
    assert blocks.k_blocks * 4 >= blocks.group_inputs == blocks.merged * in_channels // groups
    if groups // blocks.merged > 1:
        assert blocks.blocks_per_group * lanes == blocks.merged * out_channels // groups


@pytest.mark.parametrize(
    ("channels", "groups", "lanes", "merged", "blocks"),
    [
        ((64, 64), 1, 16, 1, 4),
        ((32, 32), 4, 16, 2, 2),  # two groups of 8 fill a block
        ((48, 48), 2, 16, 2, 3),  # two groups of 24 are three blocks
        ((64, 64), 2, 16, 1, 4),  # a group is two blocks
        ((18, 18), 6, 16, 6, 2),  # groups of 3 fill no block evenly: one dense convolution
        ((3, 10), 1, 16, 1, 1),
    ],
)
def test_known_cuts(channels: tuple[int, int], groups: int, lanes: int, merged: int, blocks: int) -> None:
    cut = channel_blocks(*channels, groups, lanes)
    assert (cut.merged, cut.blocks) == (merged, blocks)


def test_channel_constants_are_padded_with_zeros() -> None:
    packed = pack_channels(np.arange(1, 11, dtype=np.int32), 2, 8)
    np.testing.assert_array_equal(packed, [[1, 2, 3, 4, 5, 6, 7, 8], [9, 10, 0, 0, 0, 0, 0, 0]])
    assert packed.dtype == np.int32


def test_depthwise_weights_have_channels_last() -> None:
    weight = np.random.default_rng(0).integers(-128, 128, (10, 1, 3, 2)).astype(np.int8)
    packed = pack_depthwise_weight(weight, 8)
    assert packed.shape == (2, 3, 2, 8)
    for c in range(10):
        np.testing.assert_array_equal(packed[c // 8, :, :, c % 8], weight[c, 0])
    assert not packed[1, :, :, 2:].any()
