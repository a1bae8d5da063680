"""Register tiles: accumulators of some columns and output channels, and the steps that add products to them.

A tile computes ``columns`` pixels by ``vectors`` vectors of four output channels. There is a class for every
instruction; they differ in what a register of accumulators holds:

========  ==================================  =========================================================
smull     1 pixel, 2 channels                 two partial sums of each; ``addp`` joins them at the end
sdot      1 pixel, 4 channels
smmla     2 pixels, 2 channels                ``zip`` sorts them at the end
========  ==================================  =========================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.arm import intrinsics
from qcompiler.targets.arm.intrinsics import INT8X16
from qcompiler.targets.cpu.vectors import Body, broadcast, ramp, shuffle

Load = Callable[[int], Expr]
"""Gives the vector of a number: the weights or the bias of a vector of channels."""


Weights = Callable[[int, int], Expr]
"""Gives the weights of a word and a vector; for words of eight bytes, of half of a vector."""


@dataclass(frozen=True)
class Tile:
    """A register tile and its accumulators.

    Attributes:
        columns: pixels.
        vectors: vectors of four output channels.
        buffer: accumulators; LLVM keeps it in registers, for every index is a constant.
    """

    columns: int
    vectors: int
    buffer: tirx.Buffer

    @staticmethod
    def allocated(body: Body, columns: int, vectors: int, registers: int) -> Tile:
        """A tile with ``registers`` registers of accumulators.

        Their buffer is of the global scope: TVM takes only that from the stack, and for any other it would call its
        allocator for every tile.
        """
        buffer = tirx.decl_buffer((4 * registers,), "int32", name="acc")
        body.add(tirx.AllocBuffer(buffer))
        return Tile(columns, vectors, buffer)

    def register(self, index: int) -> Expr:
        return tirx.BufferLoad(self.buffer, [ramp(tirx.const(4 * index, "int32"), 4)])

    def set(self, body: Body, index: int, value: Expr) -> None:
        body.add(tirx.BufferStore(self.buffer, value, [ramp(tirx.const(4 * index, "int32"), 4)]))


class Smull:
    """``smull``, ``smlal`` and ``sadalp``: two words at once, so that a pair of products shares one ``sadalp``.

    With a weight of -128 two products may not fit in 16 bits; ``paired`` is false then.
    """

    word = 4

    def __init__(self, paired: bool = True) -> None:
        self.paired = paired

    @staticmethod
    def registers(columns: int, vectors: int) -> int:
        return 2 * columns * vectors

    def start(self, body: Body, tile: Tile, bias: Load) -> None:
        """Sums begin at zero; the bias joins at the end, where there is one sum a channel."""
        for k in range(self.registers(tile.columns, tile.vectors)):
            tile.set(body, k, broadcast(0, "int32", 4))

    def chunk(self, body: Body, tile: Tile, x: Sequence[Expr], first: int, weights: Weights) -> None:
        """Adds the products of the words from ``first`` on of 16 bytes of every column: ``weights(word, vector)``."""
        for start in range(first, 4, 2):
            both = range(start, min(start + 2, 4))
            words = [[body.name(intrinsics.dup_word(v, k), "dup") for v in x] for k in both]
            self._add(body, tile, words, _from(weights, start))

    def words(self, body: Body, tile: Tile, x: Sequence[Sequence[Expr]], weights: Weights) -> None:  # fmt: skip
        """Adds the products of single words, ``x[word][column]``, each of four bytes."""
        spread = [[spread_word(body, v) for v in columns] for columns in x]
        for first in range(0, len(x), 2):
            self._add(
                body,
                tile,
                spread[first : first + 2],
                _from(weights, first),
            )

    def _add(self, body: Body, tile: Tile, words: Sequence[Sequence[Expr]], weights: Weights) -> None:  # fmt: skip
        for vector in range(tile.vectors):
            w = [weights(k, vector) for k in range(len(words))]
            for column in range(tile.columns):
                for part, half in enumerate((intrinsics.low, intrinsics.high)):
                    index = 2 * (column * tile.vectors + vector) + part
                    operands = [(half(v), half(columns[column])) for v, columns in zip(w, words, strict=True)]
                    acc = tile.register(index)
                    if len(operands) == 2 and self.paired:
                        acc = intrinsics.sadalp(acc, intrinsics.smull_smlal(*operands[0], *operands[1]))
                    else:
                        for a, b in operands:
                            acc = intrinsics.sadalp(acc, intrinsics.smull(a, b))
                    tile.set(body, index, acc)

    def sums(self, body: Body, tile: Tile, column: int, bias: Load) -> list[Expr]:
        """The accumulators of a column, a vector of four channels each."""
        result = []
        for vector in range(tile.vectors):
            index = 2 * (column * tile.vectors + vector)
            joined = intrinsics.addp(tile.register(index), tile.register(index + 1))
            result.append(body.name(joined + bias(vector), "sum"))
        return result


class Sdot:
    """``sdot`` by lane: a word of the activations, and a vector of four channels' weights."""

    word = 4

    @staticmethod
    def registers(columns: int, vectors: int) -> int:
        return columns * vectors

    def start(self, body: Body, tile: Tile, bias: Load) -> None:
        """Sums begin at the bias."""
        for vector in range(tile.vectors):
            value = body.name(bias(vector), "bias")
            for column in range(tile.columns):
                tile.set(body, column * tile.vectors + vector, value)

    def chunk(self, body: Body, tile: Tile, x: Sequence[Expr], first: int, weights: Weights) -> None:
        """As for the others; of 8 bytes too."""
        for word in range(first, intrinsics.words_of(x[0])):
            self._add(body, tile, [intrinsics.dup_word(v, word) for v in x], partial(weights, word))

    def words(self, body: Body, tile: Tile, x: Sequence[Sequence[Expr]], weights: Weights) -> None:  # fmt: skip
        """Adds the products of single words, ``x[word][column]``, each of four bytes."""
        for word, columns in enumerate(x):
            spread = [spread_word(body, v) for v in columns]
            self._add(body, tile, spread, partial(weights, word))

    def _add(self, body: Body, tile: Tile, x: Sequence[Expr], weights: Load) -> None:
        for vector in range(tile.vectors):
            w = weights(vector)
            for column in range(tile.columns):
                index = column * tile.vectors + vector
                tile.set(body, index, intrinsics.sdot(tile.register(index), w, x[column]))

    def sums(self, body: Body, tile: Tile, column: int, bias: Load) -> list[Expr]:
        """The accumulators of a column, a vector of four channels each."""
        return [tile.register(column * tile.vectors + vector) for vector in range(tile.vectors)]


class Smmla:
    """``smmla``: eight bytes of two pixels, times those of two channels."""

    word = 8

    @staticmethod
    def registers(columns: int, vectors: int) -> int:
        return (columns + 1) // 2 * 2 * vectors

    def start(self, body: Body, tile: Tile, bias: Load) -> None:
        """Sums begin at the bias."""
        for vector in range(tile.vectors):
            value = body.name(bias(vector), "bias")
            halves = [body.name(shuffle([value], [k, k + 1, k, k + 1]), "bias") for k in (0, 2)]
            for pair in range((tile.columns + 1) // 2):
                for half in (0, 1):
                    tile.set(body, 2 * (pair * tile.vectors + vector) + half, halves[half])

    def chunk(self, body: Body, tile: Tile, x: Sequence[Expr], first: int, weights: Weights) -> None:
        """As for the others, with ``weights(word, 2 * vector + half)``."""
        # The high halves come first: then the low ones can be joined in place, by one instruction instead of two.
        pairs = {
            word: [body.name(intrinsics.zip_halves(a, b, word), "pair") for a, b in _pairs(x)]
            for word in range(1, first - 1, -1)
        }
        for word in range(first, 2):
            self._add(body, tile, pairs[word], partial(weights, word))

    def words(self, body: Body, tile: Tile, x: Sequence[Sequence[Expr]], weights: Weights) -> None:  # fmt: skip
        """Adds the products of single words, ``x[word][column]``, each of eight bytes."""
        for word, columns in enumerate(x):
            pairs = [body.name(shuffle([a, b], range(16)), "pair") for a, b in _pairs(columns)]
            self._add(body, tile, pairs, partial(weights, word))

    def _add(self, body: Body, tile: Tile, pairs: Sequence[Expr], weights: Load) -> None:
        for vector in range(tile.vectors):
            for half in (0, 1):
                w = weights(2 * vector + half)
                for pair, x in enumerate(pairs):
                    index = 2 * (pair * tile.vectors + vector) + half
                    tile.set(body, index, intrinsics.smmla(tile.register(index), x, w))

    def sums(self, body: Body, tile: Tile, column: int, bias: Load) -> list[Expr]:
        """The accumulators of a column, a vector of four channels each."""
        pair, row = divmod(column, 2)
        order = [2 * row, 2 * row + 1, 4 + 2 * row, 5 + 2 * row]
        indices = [2 * (pair * tile.vectors + vector) for vector in range(tile.vectors)]
        return [body.name(shuffle([tile.register(k), tile.register(k + 1)], order), "sum") for k in indices]


Products = Smull | Sdot | Smmla


def products(instruction: str, *, paired: bool = True) -> Products:
    """The steps with ``instruction``; ``paired`` as of :class:`Smull`."""
    if instruction == "smull":
        return Smull(paired)
    return Sdot() if instruction == "sdot" else Smmla()


def _from(weights: Weights, first: int) -> Weights:
    """``weights`` from word ``first`` on."""
    return lambda word, vector: weights(first + word, vector)


def spread_word(body: Body, x: Expr) -> Expr:
    """Four bytes, four times: ``ld1r``."""
    word = tirx.reinterpret("int32", x)
    return body.name(tirx.reinterpret(INT8X16, tirx.Broadcast(word, 4)), "word")


def _pairs(x: Sequence[Expr]) -> list[tuple[Expr, Expr]]:
    """Neighbours; an odd last one stands for its neighbour too, whose result nobody reads."""
    return [(x[k], x[min(k + 1, len(x) - 1)]) for k in range(0, len(x), 2)]
