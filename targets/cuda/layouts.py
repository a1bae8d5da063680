"""Packed weights of the CUDA kernels, as words of four bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.targets.cpu.shapes import ceil_div

BLOCK = 32
"""Output channels that are packed together."""

STEP = 32
"""Bytes of k of one product of the tensor cores."""

STEP_WORDS = BLOCK * STEP // 4
"""Words of the weights of a block for one step."""


def as_words(weight: NDArray[np.int8]) -> NDArray[np.int32]:
    """Bytes, four along the last axis, as a flat row of words."""
    return np.ascontiguousarray(weight).view(np.int32).reshape(-1)


def rows_of(weight: NDArray[np.int8], depth: int) -> NDArray[np.int8]:
    """``[O, I, KH, KW]`` as ``[O, depth]``: k is ``(kh, kw, i)``, filled up with zeros."""
    rows = weight.transpose(0, 2, 3, 1).reshape(weight.shape[0], -1)
    return np.pad(rows, ((0, 0), (0, depth - rows.shape[1])))


def pack_fragments(weight: NDArray[np.int8], groups: int, depth: int) -> NDArray[np.int32]:
    """Weights in the order in which lanes of a warp read them.

    A block of 32 channels is four fragments of eight columns. Column c of fragment f is channel
    ``c // 2 * 8 + 2 * f + c % 2`` of the block, so that the columns ``2 * t`` and ``2 * t + 1``, which lane t of four has
    in its registers, are eight adjacent channels over the four fragments. Lane ``4 * c + t`` holds the bytes
    ``4 * t ... 4 * t + 3`` of column c, and those 16 further on.

    Args:
        weight: ``[O, I / groups, KH, KW]``.
        groups: of the convolution.
        depth: extent of k to fill up to, a multiple of 32.

    Returns:
        Words ``[groups, blocks, depth / 32, halves of a block (2), lane (32), fragment of the half (2), k half (2)]``, flat.
    """
    out = weight.shape[0] // groups
    blocks = ceil_div(out, BLOCK)
    rows = rows_of(weight, depth).reshape(groups, out, depth)
    rows = np.pad(rows, ((0, 0), (0, blocks * BLOCK - out), (0, 0)))
    # Channel of the block: (column pair t, fragment f, of the pair e); k: (step, half h, lane's word w, byte).
    parts = rows.reshape(groups, blocks, 4, 2, 2, 2, depth // STEP, 2, 4, 4)
    # Axes:     group, block, t, f // 2, f % 2, e, step, h, w, byte
    order = parts.transpose(0, 1, 6, 3, 2, 5, 8, 4, 7, 9)
    # group, block, step, f // 2, (t, e) = column, w, f % 2, h, byte
    return as_words(order)


def pack_rows(weight: NDArray[np.int8], depth: int) -> NDArray[np.int32]:
    """``[O, I, KH, KW]`` as words ``[O, depth / 4]``, flat."""
    return as_words(rows_of(weight, depth))


def pad_groups(values: NDArray[np.generic], groups: int, padded: int) -> NDArray[np.generic]:
    """One value an output channel, every group filled up with zeros, flat."""
    of_groups = values.reshape(groups, -1)
    return np.pad(of_groups, ((0, 0), (0, padded - of_groups.shape[1]))).reshape(-1)
