"""What the description of a GPU implies for the kernels."""

from __future__ import annotations

from math import prod

from qcompiler.targets.base import GpuTarget
from qcompiler.targets.cpu.shapes import ConvShape, ceil_div
from qcompiler.targets.cuda.gemm import DEPTH, Tile, even_splits
from qcompiler.targets.cuda.layouts import BLOCK

TILES = (
    (128, 128, (2, 4)),
    (128, 64, (2, 2)),
    (64, 128, (1, 4)),
    (64, 64, (2, 2)),
    (128, 32, (4, 1)),
    (32, 64, (1, 2)),
    (64, 32, (2, 1)),
    (32, 32, (1, 1)),
    (16, 32, (1, 1)),
)
"""Rows, columns and warps of a block, the largest first: those reuse most of what they load."""

TENSOR_CORE_ROWS = 8
"""Rows of a matrix product from which on tensor cores pay; fewer read each weight once, which is all the time they take."""

DENSE_CHANNELS = 8
"""Channels of a group, in and out, from which on tensor cores pay: a fragment has eight columns."""


FILLED = 0.8
"""Share of the multiprocessors with a block from which on a larger tile pays more than another block."""

REUSING = 32 * 64
"""Sums of a tile below which it reads so much for each product that sharing those of a larger one pays."""

SPLIT_BYTES = 256
"""Bytes of k that a block multiplies at least: the copies that run ahead take the time of two tiles of k."""

MOST_SPLITS = 16
"""Blocks of one tile: each writes its sums, and all of them are read again."""


def stages(rows: int, columns: int, target: GpuTarget, depth: int = DEPTH) -> int:
    """Tiles of k in shared memory: three, so that two are on their way, or two where three do not fit."""
    shapes = [Tile(rows, columns, (1, 1), count, depth) for count in (3, 2)]
    return next(t.stages for t in shapes if t.shared_bytes <= target.shared_bytes)


def choose_tile(shape: ConvShape, target: GpuTarget) -> Tile:
    """The largest tile of which every multiprocessor has one.

    Where that is a small one or none, several blocks share the sums of a larger tile, as many as multiprocessors would be
    idle. Rows and columns beyond the output count as they are computed, in vain.
    """
    pixels = shape.batch * shape.out_height * shape.out_width
    columns = ceil_div(shape.out_channels // shape.groups, BLOCK) * BLOCK

    def blocks(tile: tuple[int, int, tuple[int, int]]) -> int:
        return ceil_div(pixels, tile[0]) * ceil_div(columns, tile[1]) * shape.groups

    def waste(tile: tuple[int, int, tuple[int, int]]) -> float:
        return blocks(tile) * tile[0] * tile[1] / (pixels * columns * shape.groups)

    least = min(map(waste, TILES))
    useful = [t for t in TILES if waste(t) <= 1.25 * least]
    split = {t: splits(shape, target.multiprocessors // blocks(t)) for t in useful}

    def filled(tile: tuple[int, int, tuple[int, int]]) -> float:
        return blocks(tile) * split[tile] / target.multiprocessors

    whole = [t for t in useful if blocks(t) >= target.multiprocessors]
    shared = [t for t in useful if split[t] > 1 and filled(t) >= FILLED]
    choices = (
        [t for t in whole if t[0] * t[1] >= REUSING]
        or [t for t in shared if t[0] * t[1] >= REUSING]
        or whole
        or shared
        or [max(useful, key=filled)]
    )
    rows, width, warps = choices[0]
    return Tile(rows, width, warps, stages(rows, width, target), splits=split[choices[0]])


def splits(shape: ConvShape, wanted: int) -> int:
    """Blocks that share the sums of a tile: ``wanted``, or as many as k is long enough for, none without work."""
    tiles = ceil_div(shape.in_channels // shape.groups * prod(shape.kernel), DEPTH)
    least = SPLIT_BYTES // DEPTH
    return even_splits(tiles, max(min(wanted, MOST_SPLITS, tiles // least), 1))


def uses_tensor_cores(shape: ConvShape) -> bool:
    """Whether a convolution, or a matrix product as one of a single row of pixels, goes to the tensor cores."""
    pixels = shape.batch * shape.out_height * shape.out_width
    narrow = shape.groups > 1 and min(shape.in_channels, shape.out_channels) // shape.groups < DENSE_CHANNELS
    return pixels >= TENSOR_CORE_ROWS and not narrow
