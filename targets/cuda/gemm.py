"""Convolutions and matrix products on the tensor cores, as an implicit matrix product.

Rows are output pixels, columns are output channels of a group, and k runs over the taps of the window and the input
channels: ``(kh, kw, c)``. The matrix of windows is never written: each thread finds where the bytes that it copies to
shared memory lie in the image. Copies run ``stages - 1`` steps ahead of the products.

Where there are fewer tiles than multiprocessors, k is split among several blocks a tile. Their sums of int32 are exact in
any order; a second kernel adds them and takes the last step.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from tvm import tirx

from qcompiler.targets.cpu.shapes import ConvShape, ceil_div
from qcompiler.targets.cuda.finish import Epilogue, Finish
from qcompiler.targets.cuda.gemm_block import Block
from qcompiler.targets.cuda.kernel import MAX_GRID, WARP, Kernel, view
from qcompiler.targets.cuda.layouts import BLOCK, STEP, STEP_WORDS
from qcompiler.targets.cuda.partial import PartialSums

DEPTH = 64
"""Bytes of k that weights are filled up to a multiple of, and that a block has in shared memory of one stage by default."""

DEPTHS = (32, 64, 128)
"""Bytes of k of a stage that can be chosen."""

MOST_STAGES = 4
"""Stages for which there is an instruction that waits for the right copies."""


@dataclass(frozen=True)
class Tile:
    """What one block computes.

    Attributes:
        rows: output pixels.
        columns: output channels, a multiple of 32.
        warps: how rows and columns are shared among warps; each has a multiple of 16 rows and of 32 columns.
        stages: tiles of k in shared memory at once.
        depth: bytes of k of a stage.
        splits: blocks that share the sums of one tile.
    """

    rows: int
    columns: int
    warps: tuple[int, int]
    stages: int
    depth: int = DEPTH
    splits: int = 1

    def __post_init__(self) -> None:
        assert self.rows % (16 * self.warps[0]) == 0, self
        assert self.columns % (BLOCK * self.warps[1]) == 0, self
        assert 2 <= self.stages <= MOST_STAGES, self
        assert self.depth in DEPTHS, self
        assert self.splits >= 1, self

    @property
    def threads(self) -> int:
        return prod(self.warps) * WARP

    @property
    def row_words(self) -> int:
        """Words from one row in shared memory to the next: eight rows of 16 bytes lie in different banks."""
        return self.depth // 4 + 4

    @property
    def stage_words(self) -> tuple[int, int]:
        """Words of one stage: of activations and of weights."""
        return self.rows * self.row_words, self.columns * self.depth // 4

    @property
    def shared_bytes(self) -> int:
        return 4 * self.stages * sum(self.stage_words)


def even_splits(tiles: int, wanted: int) -> int:
    """Blocks that share ``tiles`` of k, ``wanted`` or as few less as it takes for each to have some."""
    return ceil_div(tiles, ceil_div(tiles, wanted))


@dataclass(frozen=True)
class Gemm:
    """A convolution, dense or in groups, or a matrix product of ``[M, K]`` and ``[M, CO]`` where ``matrix`` says so.

    The weights are those of :func:`qcompiler.targets.cuda.layouts.pack_fragments`.

    Attributes:
        shape: the extents.
        epilogue: the last step.
        tile: what a block computes.
        pad_value: of the input's padding.
        matrix: activations have two axes.
    """

    shape: ConvShape
    epilogue: Epilogue
    tile: Tile
    pad_value: int
    matrix: bool

    def __post_init__(self) -> None:
        assert self.packed_depth % self.tile.depth == 0, self
        assert (self.tile.splits - 1) * self.split_tiles < self.k_tiles, "a block would have nothing to do"
        assert self.shape.groups * self.tile.splits <= MAX_GRID, self

    @property
    def pixels(self) -> int:
        return self.shape.batch * self.shape.out_height * self.shape.out_width

    @property
    def depth(self) -> int:
        """Extent of k, without what fills the last tile."""
        return self.shape.in_channels // self.shape.groups * prod(self.shape.kernel)

    @property
    def out_channels(self) -> int:
        """Output channels of a group."""
        return self.shape.out_channels // self.shape.groups

    @property
    def blocks(self) -> int:
        """Blocks of 32 output channels that a group is packed in."""
        return ceil_div(self.out_channels, BLOCK)

    @property
    def packed_depth(self) -> int:
        """Extent of k in the packed weights."""
        return ceil_div(self.depth, DEPTH) * DEPTH

    @property
    def k_tiles(self) -> int:
        return self.packed_depth // self.tile.depth

    @property
    def split_tiles(self) -> int:
        """Tiles of k of each block of a tile; the last one may have fewer."""
        return ceil_div(self.k_tiles, self.tile.splits)

    @property
    def granule(self) -> int:
        """Bytes that lie together wherever k is a multiple of them: 16, 4 or 1."""
        channels = self.shape.in_channels // self.shape.groups
        return next(g for g in (16, 4, 1) if channels % g == 0)

    @property
    def grid(self) -> tuple[int, int, int]:
        return (
            ceil_div(self.pixels, self.tile.rows),
            ceil_div(self.blocks * BLOCK, self.tile.columns),
            self.shape.groups * self.tile.splits,
        )

    def function(self) -> tirx.PrimFunc:
        s = self.shape
        inputs = (self.pixels, self.depth) if self.matrix else (s.batch, s.height, s.width, s.in_channels)
        out = (
            (self.pixels, s.out_channels)
            if self.matrix
            else (s.batch, s.out_height, s.out_width, s.out_channels)
        )
        words = s.groups * self.blocks * self.packed_depth // STEP * STEP_WORDS
        padded = self.blocks * BLOCK
        kernel = Kernel()
        with kernel:
            x = kernel.argument("x", inputs, "uint8")
            weight = kernel.argument("weight", (words,), "int32")
            finish = Finish(kernel, self.epilogue, out, s.groups, self.out_channels, padded)
            partial = None
            if self.tile.splits > 1:
                partial = PartialSums(
                    finish, self.tile.splits, self.pixels, s.groups, self.out_channels, padded
                )
            with kernel.launch(self.grid, self.tile.threads) as (place, thread):
                if partial is None:
                    finish.start()
                Block(self, partial or finish, view(x, "uint8"), weight, place, thread).run()
            if partial is not None:
                partial.add(kernel)
        return kernel.function()
