"""Packed weights hold every weight once, and no word reaches beyond its run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qcompiler.targets.arm.layouts import VECTOR, Window, cut_channels, pack_weight, vector_counts, window_of
from qcompiler.targets.cpu.shapes import ConvShape


@pytest.mark.parametrize("word", [4, 8])
@pytest.mark.parametrize(
    ("run", "starts"),
    [
        (1, {4: [0], 8: [0]}),
        (4, {4: [0], 8: [0]}),
        (9, {4: [0, 4, 5], 8: [0, 1]}),
        (16, {4: [0, 4, 8, 12], 8: [0, 8]}),
        (21, {4: [0, 4, 8, 12, 13, 17], 8: [0, 8, 13]}),
        (31, {4: [0, 4, 8, 12, 15, 19, 23, 27], 8: [0, 8, 15, 23]}),
    ],
)
def test_words_of_a_run(run: int, starts: dict[int, list[int]], word: int) -> None:
    assert Window(3, 1, run, word).starts == starts[word]


def shape_of(c: int, o: int, kernel: tuple[int, int], groups: int, dilation: int = 1) -> ConvShape:
    return ConvShape(1, 9, 9, c, o, kernel, (1, 1), (0, 0, 0, 0), (dilation, dilation), groups)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 20), st.integers(1, 20), st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2),
    st.sampled_from([4, 8]), st.integers(0, 5),
)  # fmt: skip
def test_packed_weights_give_the_same_sums(
    per_group: int, out_per_group: int, groups: int, kh: int, kw: int, dilation: int, word: int, choice: int
) -> None:
    """The sum over packed words of what they read is the convolution at one place."""
    rng = np.random.default_rng(choice)
    shape = shape_of(per_group * groups, out_per_group * groups, (kh, kw), groups, dilation)
    counts = vector_counts(shape)
    cut = cut_channels(shape, counts[choice % len(counts)])
    window = window_of(shape, cut, word)
    weight = rng.integers(-128, 128, (shape.out_channels, per_group, kh, kw)).astype(np.int8)
    x = rng.integers(-128, 128, (9, 9, shape.in_channels)).astype(np.int64)
    packed = pack_weight(weight, groups, cut, window).astype(np.int64)
    flat = x.reshape(-1)
    for o in range(shape.out_channels):
        group = o // out_per_group
        wanted = sum(
            int(weight[o, c, r, q]) * int(x[r * dilation, q * dilation, group * per_group + c])
            for c in range(per_group) for r in range(kh) for q in range(kw)
        )  # fmt: skip
        block, lane = divmod(o, cut.lanes)
        first = block // cut.blocks_per_group * cut.group_inputs
        total, place = 0, 0
        for r in range(window.rows):
            for q in range(window.columns):
                base = (r * dilation * 9 + q * dilation) * shape.in_channels + first
                for start in window.starts:
                    count = min(word, window.run)
                    read = flat[base + start : base + start + count]
                    total += int(packed[block, place, lane, :count] @ read)
                    place += 1
        assert total == wanted


def test_groups_keep_to_themselves_where_vectors_allow_it() -> None:
    assert vector_counts(shape_of(64, 64, (3, 3), 4)) == [4]
    assert vector_counts(shape_of(32, 32, (3, 3), 4)) == [2]
    assert vector_counts(shape_of(18, 18, (3, 3), 6)) == [1]
    assert VECTOR * vector_counts(shape_of(8, 10, (3, 3), 1))[-1] <= 12
