"""Packed weights of the x86 kernels.

A dense kernel reads weights as ``[CO/L, KH, KW, K/4, L, 4]``: ``L`` output channels, one a 32-bit lane, times four
input channels, the operand of one ``dot4`` intrinsic. ``K`` is the number of input channels that a block of output
channels reads. Channels past the end are zero, so they add nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


@dataclass(frozen=True)
class ChannelBlocks:
    """How the channels of a grouped convolution are cut into blocks of ``lanes`` output channels.

    Groups narrower than a block are merged: ``merged`` groups form one dense convolution whose weights are zero
    between different groups. A block of output channels never crosses a border between merged groups.

    Attributes:
        lanes: output channels of a block.
        blocks: blocks of output channels.
        blocks_per_group: blocks of one merged group.
        group_inputs: input channels of one merged group.
        k_blocks: reads of four input channels that cover ``group_inputs``.
        merged: groups that one merged group consists of.
    """

    lanes: int
    blocks: int
    blocks_per_group: int
    group_inputs: int
    k_blocks: int
    merged: int


def channel_blocks(in_channels: int, out_channels: int, groups: int, lanes: int) -> ChannelBlocks:
    """Cuts the channels into blocks with the fewest merged groups.

    With no number of groups that fills blocks evenly, all groups are merged into one dense convolution.
    """
    out_per_group, in_per_group = out_channels // groups, in_channels // groups
    merged = lanes // gcd(out_per_group, lanes)
    if groups % merged:
        merged = groups
    blocks_per_group = ceil_div(merged * out_per_group, lanes)
    return ChannelBlocks(
        lanes=lanes,
        blocks=blocks_per_group * (groups // merged),
        blocks_per_group=blocks_per_group,
        group_inputs=merged * in_per_group,
        k_blocks=ceil_div(merged * in_per_group, 4),
        merged=merged,
    )


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


def pack_channels(values: NDArray[np.generic], blocks: int, lanes: int) -> NDArray[np.generic]:
    """Pads one value an output channel with zeros to ``[blocks, lanes]``."""
    padded = np.zeros(blocks * lanes, values.dtype)
    padded[: values.shape[0]] = values
    return padded.reshape(blocks, lanes)


def pack_depthwise_weight(weight: NDArray[np.int8], lanes: int) -> NDArray[np.int8]:
    """Packs ``[C, 1, KH, KW]`` weights to ``[C/L, KH, KW, L]``."""
    channels, _, kh, kw = weight.shape
    blocks = ceil_div(channels, lanes)
    padded = np.zeros((blocks * lanes, kh, kw), np.int8)
    padded[:channels] = weight[:, 0]
    return np.ascontiguousarray(padded.reshape(blocks, lanes, kh, kw).transpose(0, 2, 3, 1))
