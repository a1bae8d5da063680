"""Output channels in blocks of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import NDArray

from qcompiler.targets.cpu.shapes import ceil_div


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
        k_blocks: reads of a word of input channels (four bytes, say) that cover ``group_inputs``.
        merged: groups that one merged group consists of.
    """

    lanes: int
    blocks: int
    blocks_per_group: int
    group_inputs: int
    k_blocks: int
    merged: int


def channel_blocks(
    in_channels: int, out_channels: int, groups: int, lanes: int, word: int = 4
) -> ChannelBlocks:
    """Cuts the channels into blocks with the fewest merged groups; ``word`` input channels are read at once.

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
        k_blocks=ceil_div(merged * in_per_group, word),
        merged=merged,
    )


def pack_channels(values: NDArray[np.generic], blocks: int, lanes: int) -> NDArray[np.generic]:
    """Pads one value an output channel with zeros to ``[blocks, lanes]``."""
    padded = np.zeros(blocks * lanes, values.dtype)
    padded[: values.shape[0]] = values
    return padded.reshape(blocks, lanes)
