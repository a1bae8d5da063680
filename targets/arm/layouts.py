"""How ARM's dense kernels read activations, and weights packed for it.

A kernel reads its window in *runs* of adjacent bytes: all columns of a row of the window with all channels where these
lie side by side, else one pixel's channels of a group. A run is read in *words* of four or eight bytes, as the
instruction multiplies them, sixteen bytes at once. The words after the last whole sixteen bytes begin earlier, so that
they end with the run; bytes that were read already have zero weights in them. So nothing is read beyond the run, and no
input is padded to whole words. A run of sixteen bytes or more has its last words in its last sixteen bytes.

Weights are ``[blocks, runs * words, lanes, word]``: for every block of output channels and every word, its weights of
each channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qcompiler.targets.cpu.channels import ChannelBlocks, channel_blocks
from qcompiler.targets.cpu.shapes import ConvShape, ceil_div

VECTOR = 4
"""Output channels of a vector of int32."""

BLOCK = 16
"""Output channels of a block: as many as fill a vector of bytes."""

CHUNK = 16
"""Bytes of a run that are read at once."""


@dataclass(frozen=True)
class Window:
    """The runs of a convolution's window.

    Attributes:
        rows: runs, one under the other.
        columns: runs, side by side.
        run: bytes of a run.
        word: bytes of a word.
    """

    rows: int
    columns: int
    run: int
    word: int

    @property
    def starts(self) -> list[int]:
        """Where the words of a run begin."""
        whole = self.run // CHUNK * CHUNK
        rest = ceil_div(self.run - whole, self.word)
        last = [max(self.run - self.word * (rest - k), 0) for k in range(rest)]
        if self.run < CHUNK:  # words of their own: as few bytes twice as possible
            last = [min(self.word * k, max(self.run - self.word, 0)) for k in range(rest)]
        return [*range(0, whole, self.word), *last]

    @property
    def words(self) -> int:
        """Words of an accumulator's sum."""
        return self.rows * self.columns * len(self.starts)


def vector_counts(shape: ConvShape) -> list[int]:
    """Vectors that a block of output channels may have: for groups, as many as do not mix two of them."""
    per_group = shape.out_channels // shape.groups
    if shape.groups == 1:
        return [v for v in (1, 2, 3, 4, 6, 8) if v <= ceil_div(per_group, VECTOR)]
    return [next((v for v in (4, 2) if per_group % (v * VECTOR) == 0), 1)]


def cut_channels(shape: ConvShape, vectors: int) -> ChannelBlocks:
    """Blocks of ``vectors`` vectors of output channels."""
    return channel_blocks(shape.in_channels, shape.out_channels, shape.groups, vectors * VECTOR)


def window_of(shape: ConvShape, cut: ChannelBlocks, word: int) -> Window:
    """How the window of ``shape`` is read."""
    kh, kw = shape.kernel
    if cut.group_inputs == shape.in_channels and shape.dilation[1] == 1:
        return Window(kh, 1, kw * shape.in_channels, word)
    return Window(kh, kw, cut.group_inputs, word)


def pack_weight(
    weight: NDArray[np.int8], groups: int, cut: ChannelBlocks, window: Window
) -> NDArray[np.int8]:
    """Packs OIHW weights (I: input channels of a group)."""
    out_channels, in_per_group, kh, kw = weight.shape
    out_per_group = out_channels // groups
    dense = np.zeros((cut.blocks * cut.lanes, kh, kw, cut.group_inputs), np.int8)
    for o in range(out_channels):
        first = (o // out_per_group) % cut.merged * in_per_group
        dense[o, ..., first : first + in_per_group] = weight[o].transpose(1, 2, 0)
    runs = dense.reshape(cut.blocks, cut.lanes, window.rows * window.columns, window.run)
    packed = np.zeros((cut.blocks, runs.shape[2], len(window.starts), cut.lanes, window.word), np.int8)
    done = 0
    for k, start in enumerate(window.starts):
        end = min(start + window.word, window.run)
        packed[:, :, k, :, done - start : end - start] = runs[..., done:end].transpose(0, 2, 1, 3)
        done = end
    return packed.reshape(cut.blocks, window.words, cut.lanes, window.word)
