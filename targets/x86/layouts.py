"""Packed weights of the x86 kernels.

A dense kernel reads weights as ``[CO/L, KH, KW, K/W, L, W]``: ``L`` output channels, one a 32-bit lane, times a word of
``W`` input channels (four of int8, two of bfloat16, one of float32), the operand of one multiply-accumulate intrinsic. ``K`` is the number of input channels that a block of output
channels reads. Channels past the end are zero, so they add nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qcompiler.targets.cpu.channels import ChannelBlocks
from qcompiler.targets.cpu.shapes import ceil_div


def pack_weight(weight: NDArray[Any], groups: int, cut: ChannelBlocks, word: int = 4) -> NDArray[Any]:
    """Packs OIHW weights (I: input channels of a group) to ``[CO/L, KH, KW, K/W, L, W]`` with ``W = word``; a word of one has no axis."""
    out_channels, in_per_group, kh, kw = weight.shape
    out_per_group = out_channels // groups
    dense = np.zeros((cut.blocks * cut.lanes, cut.k_blocks * word, kh, kw), weight.dtype)
    for o in range(out_channels):
        first = (o // out_per_group) % cut.merged * in_per_group
        dense[o, first : first + in_per_group] = weight[o]
    packed = dense.reshape(cut.blocks, cut.lanes, cut.k_blocks, word, kh, kw)
    words = np.ascontiguousarray(packed.transpose(0, 4, 5, 2, 1, 3))
    return words[..., 0] if word == 1 else words


def pack_depthwise_weight(weight: NDArray[Any], lanes: int) -> NDArray[Any]:
    """Packs ``[C, 1, KH, KW]`` weights to ``[C/L, KH, KW, L]``."""
    channels, _, kh, kw = weight.shape
    blocks = ceil_div(channels, lanes)
    padded = np.zeros((blocks * lanes, kh, kw), weight.dtype)
    padded[:channels] = weight[:, 0]
    return np.ascontiguousarray(padded.reshape(blocks, lanes, kh, kw).transpose(0, 2, 3, 1))
