"""Packed weights of the x86 kernels.

A dense kernel reads weights as ``[CO/L, KH, KW, K/4, L, 4]``: ``L`` output channels, one a 32-bit lane, times four
input channels, the operand of one ``dot4`` intrinsic. ``K`` is the number of input channels that a block of output
channels reads. Channels past the end are zero, so they add nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from qcompiler.targets.cpu.channels import ChannelBlocks
from qcompiler.targets.cpu.shapes import ceil_div


def pack_weight(weight: NDArray[np.int8], groups: int, cut: ChannelBlocks) -> NDArray[np.int8]:
    """Packs OIHW weights (I: input channels of a group) to ``[CO/L, KH, KW, K/4, L, 4]``."""
    out_channels, in_per_group, kh, kw = weight.shape
    out_per_group = out_channels // groups
    dense = np.zeros((cut.blocks * cut.lanes, cut.k_blocks * 4, kh, kw), np.int8)
    for o in range(out_channels):
        first = (o // out_per_group) % cut.merged * in_per_group
        dense[o, first : first + in_per_group] = weight[o]
    packed = dense.reshape(cut.blocks, cut.lanes, cut.k_blocks, 4, kh, kw)
    return np.ascontiguousarray(packed.transpose(0, 4, 5, 2, 1, 3))


def pack_depthwise_weight(weight: NDArray[np.int8], lanes: int) -> NDArray[np.int8]:
    """Packs ``[C, 1, KH, KW]`` weights to ``[C/L, KH, KW, L]``."""
    channels, _, kh, kw = weight.shape
    blocks = ceil_div(channels, lanes)
    padded = np.zeros((blocks * lanes, kh, kw), np.int8)
    padded[:channels] = weight[:, 0]
    return np.ascontiguousarray(padded.reshape(blocks, lanes, kh, kw).transpose(0, 2, 3, 1))
