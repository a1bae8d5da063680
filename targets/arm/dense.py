"""Dense convolutions and matrix products: register tiles that keep their accumulators over the whole sum.

A tile is some pixels by some vectors of output channels. Pixels are those of all rows and images, one after the other,
so that a tile may run over the end of a row: only the last tile of all can be narrower. The kernel is written, not
scheduled; its decisions are the extents of the tile and the order of the loops.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.arm import memory
from qcompiler.targets.arm.finish import Epilogue, Finish
from qcompiler.targets.arm.layouts import CHUNK, VECTOR, Window, cut_channels, window_of
from qcompiler.targets.arm.products import Products, Tile, products
from qcompiler.targets.borders import in_root_block, sequence
from qcompiler.targets.cpu.channels import ChannelBlocks
from qcompiler.targets.cpu.shapes import ConvShape, ceil_div, divisor_at_most, loop_kind
from qcompiler.targets.cpu.vectors import Body, ramp

_Weights = Callable[[Expr, int], Expr]
"""Loads the weights of a word and a part of a panel."""


def fits(packed: int, vectors: int) -> bool:
    """Whether tiles of ``vectors`` vectors can read blocks of ``packed``."""
    return packed % vectors == 0 or vectors % packed == 0


@dataclass(frozen=True)
class Decision:
    """Decisions of a dense kernel.

    Attributes:
        columns: pixels of a tile.
        vectors: vectors of four output channels of a tile.
        channel_major: the loop over output channels is outside of the loop over pixels.
        unroll: chunks of a run that a turn of the inner loop takes, or as many fewer as divide them.
    """

    columns: int
    vectors: int
    channel_major: bool
    unroll: int = 1


class Dense:
    """A dense convolution without padding of its own, or with ``matrix`` a product of ``[M, K]`` activations.

    The arguments are x, the weights of ``layouts.pack_weight``, bias and multiplier ``[blocks, lanes]``, with a
    residual the residual and its multiplier and offset, and the output.

    Args:
        shape: extents; padding must be zero.
        epilogue: what happens to a sum.
        instruction: that multiplies.
        packed: vectors of a block of packed weights. A tile is one or more whole blocks, or an even share of one.
        decision: the tile.
        matrix: activations and output are ``[M, K]`` and ``[M, CO]``.
        paired: two products fit in 16 bits, since no weight is -128.
        halves: activations are loaded by eight bytes; only for ``sdot``.
    """

    def __init__(
        self, shape: ConvShape, epilogue: Epilogue, instruction: str, packed: int, decision: Decision, *,
        matrix: bool, paired: bool, halves: bool,
    ) -> None:  # fmt: skip
        assert not any(shape.padding), shape
        assert not halves or instruction == "sdot", instruction
        assert fits(packed, decision.vectors), (packed, decision)
        self.shape, self.packed, self.decision, self.matrix = shape, packed, decision, matrix
        self.products: Products = products(instruction, paired=paired)
        self.cut: ChannelBlocks = cut_channels(shape, packed)
        self.window: Window = window_of(shape, self.cut, self.products.word)
        self.halves = halves and self.window.run >= CHUNK
        n, oh, ow, co = shape.batch, shape.out_height, shape.out_width, shape.out_channels
        blocks, lanes = self.cut.blocks, self.cut.lanes
        self.inputs = n * shape.height * shape.width * shape.in_channels
        inner = (
            (shape.width, shape.in_channels) if matrix else (n, shape.height, shape.width, shape.in_channels)
        )
        outer = (ow, co) if matrix else (n, oh, ow, co)
        self.x = tirx.decl_buffer(inner, "int8", name="x")
        self.flat = tirx.decl_buffer((self.inputs,), "int8", name="flat_x", data=self.x.data)
        extents = (blocks, self.window.words, lanes, self.window.word)
        self.weight = tirx.decl_buffer(extents, "int8", name="weight")
        size = blocks * self.window.words * lanes * self.window.word
        self.flat_weight = tirx.decl_buffer((size,), "int8", name="flat_weight", data=self.weight.data)
        self.finish = Finish(epilogue, blocks, lanes, outer)

    def function(self, cycles: int) -> tirx.PrimFunc:
        """The kernel, which takes about ``cycles`` on one core."""
        pixels = self.shape.batch * self.shape.out_height * self.shape.out_width
        columns, vectors = self.decision.columns, self.decision.vectors
        total = ceil_div(self.shape.out_channels, VECTOR)
        tiles, panels = ceil_div(pixels, columns), ceil_div(total, vectors)
        task = tirx.Var("task", "int32")
        major, minor = (
            (task // tiles, task % tiles) if self.decision.channel_major else (task // panels, task % panels)
        )
        panel, tile = (major, minor) if self.decision.channel_major else (minor, major)

        whole_panels, rest = divmod(total, vectors)
        if total * VECTOR > self.shape.out_channels and not rest:
            whole_panels, rest = whole_panels - 1, vectors  # the last writes fewer channels

        def of_panel(count: int, valid: int) -> tirx.Stmt:
            return _split(
                tile, pixels // columns, pixels % columns,
                lambda last: self._tile(tile * columns, pixels % columns if last else columns, panel, count, valid),
            )  # fmt: skip

        last_valid = self.shape.out_channels - whole_panels * vectors * VECTOR
        body = _split(
            panel, whole_panels, rest,
            lambda last: of_panel(rest, last_valid) if last else of_panel(vectors, vectors * VECTOR),
        )  # fmt: skip
        loop = tirx.For(task, 0, tiles * panels, loop_kind(cycles), body)
        sources = ((self.flat, self.x), (self.flat_weight, self.weight))
        views = [tirx.DeclBuffer(view, data=source.data) for view, source in sources]
        whole = tirx.SeqStmt([*views, loop])
        arguments = [self.x, self.weight, *self.finish.arguments]
        function = tirx.PrimFunc(arguments, in_root_block(whole))
        return function.with_attr("tirx.noalias", True).with_attr("s_tir", True)

    def _tile(self, first: Expr, columns: int, panel: Expr, vectors: int, valid: int) -> tirx.Stmt:
        """``columns`` pixels from ``first`` on, the first ``vectors`` vectors and ``valid`` channels of panel ``panel``."""
        body = Body()
        count = self.products.registers(columns, vectors)
        tile = Tile.allocated(body, columns, vectors, count)
        start = body.name(panel * self.decision.vectors, "vector")
        places = [self._place(body, first, j) for j in range(columns)]
        group = self._first_input(start // self.packed)
        first_bytes = [self._base(place) + group for place in places]
        bases = [
            memory.hidden_offset(body, at) if self.halves else body.name(at, "base") for at in first_bytes
        ]
        self.products.start(body, tile, lambda v: self.finish.constant("bias", start + v))
        body.add(self._sum(tile, bases, self._weights(body, panel)))
        for column, place in enumerate(places):
            sums = self.products.sums(body, tile, column, lambda v: self.finish.constant("bias", start + v))
            self.finish.write(body, sums, start, place[2:] if self.matrix else place, valid)
        return tirx.SeqStmt(body.statements)

    def _place(self, body: Body, first: Expr, j: int) -> tuple[Expr, Expr, Expr]:
        """Image, row and column of pixel ``first + j``."""
        if self.matrix:
            zero = tirx.const(0, "int32")
            return zero, zero, body.name(first + j, "pixel")
        oh, ow = self.shape.out_height, self.shape.out_width
        pixel = body.name(first + j, "pixel")
        row = body.name(pixel // ow, "row")
        image = row // oh if self.shape.batch > 1 else tirx.const(0, "int32")
        return image, row % oh if self.shape.batch > 1 else row, pixel % ow

    def _base(self, place: tuple[Expr, Expr, Expr]) -> Expr:
        """Where the window of an output pixel begins in the flat input."""
        image, i, j = place
        s = self.shape
        return ((image * s.height + i * s.strides[0]) * s.width + j * s.strides[1]) * s.in_channels

    def _first_input(self, block: Expr) -> Expr:
        if self.cut.blocks_per_group == self.cut.blocks:
            return tirx.const(0, "int32")
        return block // self.cut.blocks_per_group * self.cut.group_inputs

    def _weights(self, body: Body, panel: Expr) -> _Weights:
        """Loads of the weights of a panel: sixteen bytes of word ``word``, of the channels of a vector, or for words of
        eight bytes of half of them.
        """
        word_bytes = self.packed * VECTOR * self.window.word  # of a block
        block_bytes = self.window.words * word_bytes
        vector_bytes = VECTOR * self.window.word
        shares = self.packed // self.decision.vectors
        if shares:
            first = panel // shares * block_bytes + panel % shares * (self.decision.vectors * vector_bytes)
        else:
            first = panel * (self.decision.vectors // self.packed * block_bytes)
        base = body.name(first, "weights")

        def load(word: Expr, part: int) -> Expr:
            vector, byte = divmod(16 * part, vector_bytes)
            block, inside = divmod(vector, self.packed)
            at = base + word * word_bytes + (block * block_bytes + inside * vector_bytes + byte)
            return tirx.BufferLoad(self.flat_weight, [ramp(at, 16)])

        return load

    def _loaded(self, body: Body, bases: Sequence[Expr], at: Expr, start: int) -> list[Expr]:
        """The bytes from ``start`` on of the chunk at ``at`` of every column's window: sixteen, or eight of them.

        Cortex-A55 takes two cycles of its own for a load of sixteen bytes, and none for one of eight beside an ``sdot``.
        """
        if not self.halves:
            return [body.name(tirx.BufferLoad(self.flat, [ramp(base + at, CHUNK)]), "x") for base in bases]
        view = memory.hidden_view(body, self.flat, at + start)
        one = tirx.const(1, "int64")
        return [body.name(tirx.BufferLoad(view, [tirx.Ramp(base, one, CHUNK // 2)]), "x") for base in bases]

    def _sum(self, tile: Tile, bases: Sequence[Expr], weights: _Weights) -> tirx.Stmt:
        """The loops over the window's runs and over the chunks of a run."""
        window, s = self.window, self.shape
        row, column, step = (tirx.Var(name, "int32") for name in ("kh", "kw", "chunk"))
        run = row * window.columns + column
        offset = (row * s.dilation[0] * s.width + column * s.dilation[1]) * s.in_channels
        per_chunk = CHUNK // window.word
        chunks = window.run // CHUNK
        first_word = run * len(window.starts)
        statements: list[tirx.Stmt] = []

        def weight(body: Body, word: Expr, k: int, part: int) -> Expr:
            return body.name(weights(word + k, part), "w")

        def add_chunk(body: Body, at: Expr | int, first: int, word: Expr) -> None:
            """The words from ``first`` on of the chunk that begins at byte ``at`` of the run; ``word`` is the first's."""
            for start in (0, CHUNK // 2) if self.halves else (0,):
                x = self._loaded(body, bases, offset + at, start)
                skipped = start // window.word
                read = partial(weight, body, word + (skipped - first))
                self.products.chunk(body, tile, x, max(first - skipped, 0), read)

        if chunks:
            body, turns = Body(), unrolled(chunks, self.decision.unroll)
            for k in range(turns):
                chunk = step * turns + k
                add_chunk(body, chunk * CHUNK, 0, first_word + chunk * per_chunk)
            statements.append(
                tirx.For(step, 0, chunks // turns, tirx.ForKind.SERIAL, tirx.SeqStmt(body.statements))
            )
        rest = window.starts[chunks * per_chunk :]
        if rest:
            body = Body()
            word = first_word + chunks * per_chunk
            if chunks:
                add_chunk(body, window.run - CHUNK, per_chunk - len(rest), word)
            else:
                count = min(window.word, window.run)
                columns = [
                    [
                        memory.load(body, self.flat, [], base + offset + start, count, window.word)
                        for base in bases
                    ]
                    for start in rest
                ]
                self.products.words(body, tile, columns, partial(weight, body, word))
            statements.append(tirx.SeqStmt(body.statements))
        inner = tirx.For(column, 0, window.columns, tirx.ForKind.SERIAL, sequence(statements))
        return tirx.For(row, 0, window.rows, tirx.ForKind.SERIAL, inner)


def unrolled(chunks: int, unroll: int) -> int:
    """Chunks of a turn: the largest divisor of ``chunks`` that is not above ``unroll``."""
    return divisor_at_most(chunks, unroll)


def _split(index: Expr, whole: int, rest: int, make: Callable[[bool], tirx.Stmt]) -> tirx.Stmt:
    """A body for the first ``whole`` values of ``index``, and another for the last if there is a rest."""
    if not rest:
        return make(False)
    if not whole:
        return make(True)
    return tirx.IfThenElse(index < whole, make(False), make(True))
