"""The statements of the kernel of an implicit matrix product: what each thread copies and multiplies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from tvm import tirx
from tvm.ir import Expr
from tvm.tirx.script import builder as T

from qcompiler.targets.cpu.shapes import ceil_div
from qcompiler.targets.cuda.kernel import (
    WARP,
    address,
    bind,
    every,
    otherwise_pair,
    placed,
    read,
    registers,
    repeated,
    run,
    shared,
    store,
    synchronize,
    update,
    when,
)
from qcompiler.targets.cuda.layouts import BLOCK, STEP, STEP_WORDS

if TYPE_CHECKING:
    from qcompiler.targets.cuda.gemm import Gemm


class Sink(Protocol):
    """What takes the sums of a block."""

    def write(self, pixel: Expr, part: Expr | int, channel: Expr, sums: Sequence[Expr], /) -> None:
        """Takes the sums of a pixel from ``channel`` of a group on; ``part`` is the block's place along the grid's last axis."""


class Block:
    """The statements of one thread."""

    def __init__(
        self, gemm: Gemm, sink: Sink, x: tirx.Buffer, weight: tirx.Buffer, place: Sequence[Expr], thread: Expr
    ) -> None:  # fmt: skip
        """``place`` is the block's in the grid: tile of rows, tile of columns, and group, of each of them the splits."""
        self.gemm, self.shape, self.tile = gemm, gemm.shape, gemm.tile
        self.sink, self.x, self.weight, self.thread = sink, x, weight, thread
        row_tile, column_tile, part = place
        splits = gemm.tile.splits
        self.group = bind(tirx.floordiv(part, splits)) if splits > 1 else part
        self.split = bind(tirx.floormod(part, splits)) if splits > 1 else None
        self.part = part
        self.first_row = bind(row_tile * self.tile.rows)
        self.first_block = bind(column_tile * (self.tile.columns // BLOCK))
        # Copies of activations: each thread has a place in the row, and every so many rows.
        self.chunk = 16 if gemm.granule == 16 else 4
        self.per_row = self.tile.depth // self.chunk
        self.rows_at_once = self.tile.threads // self.per_row
        self.passes = ceil_div(self.tile.rows, self.rows_at_once)
        self.copied_row = bind(tirx.floordiv(thread, self.per_row))
        self.copied_chunk = bind(tirx.floormod(thread, self.per_row))
        # A warp's part of the tile.
        self.warp_rows = self.tile.rows // self.tile.warps[0] // 16
        self.warp_blocks = self.tile.columns // self.tile.warps[1] // BLOCK
        warp = bind(tirx.floordiv(thread, WARP))
        self.lane = bind(tirx.floormod(thread, WARP))
        self.warp_row = bind(tirx.floordiv(warp, self.tile.warps[1]) * (self.warp_rows * 16))
        self.warp_block = bind(tirx.floormod(warp, self.tile.warps[1]) * self.warp_blocks)

    def run(self) -> None:
        stages, tiles, first = self.tile.stages, *self._tiles()
        row_words, weight_words = self.tile.stage_words
        self.rows = shared(stages * row_words)
        self.weights = shared(stages * weight_words)
        self.sums = registers(self.warp_rows * self.warp_blocks * 16)
        self.fragment = registers(self.warp_rows * 4, "uint32")
        self.weight_fragment = registers(4)
        self._find_rows()
        with T.unroll(0, self.warp_rows * self.warp_blocks * 16) as k:
            store(self.sums, k, 0)
        with T.serial(0, stages - 1) as stage:
            with when(stage < tiles):
                self._copy(first + stage, stage)
            run("qc_commit")
        with T.serial(0, tiles) as k:
            run(f"qc_wait{stages - 2}")
            synchronize()
            ahead = k + (stages - 1)
            with when(ahead < tiles):
                self._copy(first + ahead, tirx.floormod(ahead, stages))
            run("qc_commit")
            self._multiply(tirx.floormod(k, stages))
        self._finish()

    def _tiles(self) -> tuple[Expr | int, Expr | int]:
        """How many tiles of k this block multiplies, and the first of them."""
        gemm = self.gemm
        if self.split is None:
            return gemm.k_tiles, 0
        first = bind(self.split * gemm.split_tiles)
        if gemm.k_tiles % gemm.split_tiles == 0:
            return gemm.split_tiles, first
        return bind(tirx.min(gemm.k_tiles - first, gemm.split_tiles)), first

    def _row_of(self, index: Expr) -> Expr:
        return self.first_row + self.copied_row + index * self.rows_at_once

    def _find_rows(self) -> None:
        """Where the windows of the rows begin that this thread copies."""
        s = self.shape
        channels = s.in_channels // s.groups
        self.origins, self.tops, self.lefts = (registers(self.passes) for _ in range(3))
        with T.unroll(0, self.passes) as index:
            row = bind(self._row_of(index))
            pixel = bind(tirx.floormod(row, s.out_height * s.out_width))
            image = tirx.floordiv(row, s.out_height * s.out_width) * (s.height * s.width * s.in_channels)
            top = tirx.floordiv(pixel, s.out_width) * s.strides[0] - s.padding[0]
            store(self.tops, index, top)
            store(self.lefts, index, tirx.floormod(pixel, s.out_width) * s.strides[1] - s.padding[1])
            store(self.origins, index, image + self.group * channels)

    def _tap(self, k: Expr) -> tuple[Expr, Expr, Expr]:
        """Row and column of the window, and the channel, of a place in k."""
        s = self.shape
        channels = s.in_channels // s.groups
        if s.kernel == (1, 1):
            return tirx.const(0, "int32"), tirx.const(0, "int32"), k
        tap = bind(tirx.floordiv(k, channels))
        column = tirx.floormod(tap, s.kernel[1]) * s.dilation[1]
        return (
            bind(tirx.floordiv(tap, s.kernel[1]) * s.dilation[0]),
            bind(column),
            bind(tirx.floormod(k, channels)),
        )

    def _source(self, index: Expr, tap: tuple[Expr, Expr, Expr], k: Expr) -> tuple[Expr | bool, Expr]:
        """Whether a place of a row's window is in the image, and where in memory."""
        s, gemm = self.shape, self.gemm
        y, x = bind(self.tops[index] + tap[0]), bind(self.lefts[index] + tap[1])
        conditions: list[Expr | bool] = [
            gemm.pixels % self.tile.rows == 0 or self._row_of(index) < gemm.pixels,
            gemm.depth % self.tile.depth == 0 or k < gemm.depth,
        ]
        if any(s.padding):
            conditions += [y >= 0, y < s.height, x >= 0, x < s.width]
        return every(conditions), self.origins[index] + (y * s.width + x) * s.in_channels + tap[2]

    def _copy(self, tile: Expr, stage: Expr) -> None:
        """Copies tile ``tile`` of k into stage ``stage``."""
        self._copy_rows(tile, stage)
        self._copy_weights(tile, stage)

    def _copy_rows(self, tile: Expr, stage: Expr) -> None:
        k = bind(tile * self.tile.depth + self.copied_chunk * self.chunk)
        words = self.chunk // 4
        taps = [self._tap(k + j) for j in range(4)] if self.gemm.granule == 1 else [self._tap(k)]
        whole = self.tile.rows % self.rows_at_once == 0
        with T.unroll(0, self.passes) as index:
            row = bind(self.copied_row + index * self.rows_at_once)
            target = bind((stage * self.tile.rows + row) * self.tile.row_words + self.copied_chunk * words)
            with when(whole or row < self.tile.rows):
                if self.gemm.granule == 1:
                    run("qc_fill4", address(self.rows, target, 1), self._gathered(index, taps, k))
                else:
                    self._copy_chunk(address(self.rows, target, words), *self._source(index, taps[0], k))

    def _copy_chunk(self, target: Expr, inside: Expr | bool, source: Expr) -> None:
        """Copies a chunk of the image, or fills its place with padding."""
        copy = f"qc_copy{self.chunk}"
        if inside is True:
            run(copy, target, read(self.x, source, self.chunk))
            return
        with otherwise_pair(inside) as (then, outside):
            with then:
                run(copy, target, read(self.x, source, self.chunk))
            with outside:
                run(f"qc_fill{self.chunk}", target, repeated(self.gemm.pad_value))

    def _gathered(self, index: Expr, taps: list[tuple[Expr, Expr, Expr]], k: Expr) -> Expr:
        """Four bytes of a row's window that do not lie together, as a word."""
        word: Expr | None = None
        for j, tap in enumerate(taps):
            inside, source = self._source(index, tap, k + j)
            shifted = placed(inside, self.x[source], self.gemm.pad_value, j)
            word = shifted if word is None else word | shifted
        assert word is not None
        return word

    def _copy_weights(self, tile: Expr, stage: Expr) -> None:
        gemm, blocks = self.gemm, self.tile.columns // BLOCK
        tile_words = self.tile.depth // STEP * STEP_WORDS
        chunks = blocks * tile_words // 4
        with T.unroll(0, ceil_div(chunks, self.tile.threads)) as index:
            chunk = self.thread + index * self.tile.threads
            block = bind(self.first_block + tirx.floordiv(chunk, tile_words // 4))
            word = tirx.floormod(chunk, tile_words // 4) * 4
            source = ((self.group * gemm.blocks + block) * gemm.k_tiles + tile) * tile_words + word
            target = stage * self.tile.stage_words[1] + chunk * 4
            conditions: list[Expr | bool] = [
                chunks % self.tile.threads == 0 or chunk < chunks,
                gemm.blocks % blocks == 0 or block < gemm.blocks,
            ]
            with when(every(conditions)):
                run("qc_copy16", address(self.weights, target, 4), read(self.weight, source, 4))

    def _multiply(self, stage: Expr) -> None:
        row_words, weight_words = self.tile.stage_words
        for step in range(self.tile.depth // STEP):
            for i in range(self.warp_rows):
                row = self.warp_row + i * 16 + tirx.floormod(self.lane, 16)
                half = step * (STEP // 4) + tirx.floordiv(self.lane, 16) * 4
                source = stage * row_words + row * self.tile.row_words + half
                run("qc_load_rows", update(self.fragment, 4 * i, 4), address(self.rows, source, 4))
            for j in range(self.warp_blocks):
                for half_block in range(2):
                    source = (
                        stage * weight_words
                        + (self.warp_block + j) * (self.tile.depth // STEP * STEP_WORDS)
                        + step * STEP_WORDS
                        + half_block * (STEP_WORDS // 2)
                        + self.lane * 4
                    )
                    run("qc_load_words", update(self.weight_fragment, 0, 4), address(self.weights, source, 4))
                    for of_half in range(2):
                        for i in range(self.warp_rows):
                            run(
                                "qc_mma",
                                update(self.sums, self._sum(i, j, 2 * half_block + of_half, 0), 4),
                                read(self.fragment, 4 * i, 4),
                                read(self.weight_fragment, 2 * of_half, 2),
                            )

    def _sum(self, i: int, j: int, columns: int, register: int) -> int:
        """Where a sum is: of 16 rows ``i``, block ``j``, eight of its columns, and a register of the fragment."""
        return ((i * self.warp_blocks + j) * 4 + columns) * 4 + register

    def _finish(self) -> None:
        """A lane has eight adjacent channels of two rows in every 16: the packed weights are in such an order."""
        gemm = self.gemm
        for i in range(self.warp_rows):
            for low in range(2):
                row = bind(self.first_row + self.warp_row + i * 16 + low * 8 + tirx.floordiv(self.lane, 4))
                with when(gemm.pixels % self.tile.rows == 0 or row < gemm.pixels):
                    for j in range(self.warp_blocks):
                        channel = bind(
                            (self.first_block + self.warp_block + j) * BLOCK + tirx.floormod(self.lane, 4) * 8
                        )
                        sums = [
                            self.sums[self._sum(i, j, f, 2 * low + e)] for f in range(4) for e in range(2)
                        ]
                        self.sink.write(row, self.part, channel, sums)
