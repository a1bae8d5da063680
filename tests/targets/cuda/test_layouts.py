"""Packed weights hold every weight once, where the lanes of a warp look for it."""

from __future__ import annotations

import numpy as np
import pytest

from qcompiler.targets.cuda.depthwise import pack_weight
from qcompiler.targets.cuda.direct import pack_taps
from qcompiler.targets.cuda.layouts import BLOCK, STEP, pack_fragments, pack_rows, pad_groups


@pytest.mark.parametrize(("out", "channels", "groups"), [(32, 32, 1), (40, 3, 1), (96, 16, 3), (1, 5, 1)])
def test_fragments(out: int, channels: int, groups: int) -> None:
    weight = np.random.default_rng(0).integers(-128, 128, (out, channels, 2, 3)).astype(np.int8)
    taps = 6 * channels
    depth = -(-taps // 64) * 64
    of_group = out // groups
    blocks = -(-of_group // BLOCK)
    packed = pack_fragments(weight, groups, depth).view(np.int8)
    packed = packed.reshape(groups, blocks, depth // STEP, 2, 32, 2, 2, 4)
    rows = weight.transpose(0, 2, 3, 1).reshape(groups, of_group, taps)
    rng = np.random.default_rng(1)
    for _ in range(500):
        g, b, step, half, lane, f, k_half, byte = (rng.integers(n) for n in packed.shape)
        column, fragment = lane // 4, 2 * half + f
        channel = b * BLOCK + column // 2 * 8 + 2 * fragment + column % 2
        k = step * STEP + 16 * k_half + 4 * (lane % 4) + byte
        expected = rows[g, channel, k] if channel < of_group and k < taps else 0
        assert packed[g, b, step, half, lane, f, k_half, byte] == expected


def test_depthwise_weights_are_alone_in_their_words() -> None:
    weight = np.arange(-30, 30).reshape(10, 1, 2, 3).astype(np.int8)
    packed = pack_weight(weight).view(np.int8).reshape(6, 10, 4)
    for channel in range(10):
        np.testing.assert_array_equal(packed[:, channel, channel % 4], weight[channel].reshape(-1))
        assert not np.delete(packed[:, channel], channel % 4, axis=1).any()


def test_taps_and_rows_are_filled_up_with_zeros() -> None:
    weight = np.random.default_rng(0).integers(-127, 128, (6, 5, 2, 3)).astype(np.int8)
    taps = pack_taps(weight).view(np.int8).reshape(2, 3, 2, 6, 4)
    assert taps[1, 2, 0, 4, 3] == weight[4, 3, 1, 2]
    assert taps[1, 2, 1, 4, 0] == weight[4, 4, 1, 2]
    assert not taps[:, :, 1, :, 1:].any()
    rows = pack_rows(weight, 32).view(np.int8).reshape(6, 32)
    np.testing.assert_array_equal(rows[:, :30], weight.transpose(0, 2, 3, 1).reshape(6, 30))
    assert not rows[:, 30:].any()


def test_constants_of_groups_are_padded() -> None:
    assert pad_groups(np.arange(1, 7), 2, 4).tolist() == [1, 2, 3, 0, 4, 5, 6, 0]
