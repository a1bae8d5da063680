"""What the kernels do without tuning: decisions that the description of the target implies."""

from __future__ import annotations

from qcompiler.targets.arm.dense import Decision
from qcompiler.targets.arm.layouts import VECTOR, Window
from qcompiler.targets.arm.products import products
from qcompiler.targets.base import Target
from qcompiler.targets.cpu.channels import ChannelBlocks
from qcompiler.targets.cpu.shapes import ceil_div

LIVE = 30
"""Registers for accumulators, the activations of a chunk and the weights of a step; LLVM wants one or two more."""

WEIGHTS = 4
"""Registers that weights in flight take."""

_LOAD = 0.3
"""Cost of a load, in products: they have pipelines of their own, but share the front of the processor."""

_EPILOGUE = 9
"""Instructions that turn a vector of accumulators into bytes, the addresses of its pixel included."""


def dense_decision(
    target: Target, pixels: int, vectors: int, cut: ChannelBlocks, window: Window, *, weight_bytes: int, input_bytes: int
) -> Decision:  # fmt: skip
    """The tile of a dense kernel without tuning.

    Args:
        target: the chip.
        pixels: output pixels of all images.
        vectors: vectors of four output channels.
        cut: of the channels.
        window: how it is read.
        weight_bytes: size of the packed weights.
        input_bytes: size of the input.
    """
    tiles = [
        (columns, count)
        for count in vector_counts(vectors, cut)
        for columns in column_counts(target, count, pixels)
    ]
    columns, count = min(tiles, key=lambda t: (_cost(target, pixels, vectors, window, *t), -t[0] * t[1]))
    return Decision(columns, count, channel_major=weight_bytes > input_bytes)


def vector_counts(vectors: int, cut: ChannelBlocks) -> list[int]:
    """Vectors that a tile may have: those of a tile read the same inputs."""
    per_group = cut.blocks_per_group * cut.lanes // VECTOR
    grouped = cut.blocks_per_group != cut.blocks
    return [v for v in (1, 2, 3, 4, 6, 8, 12) if v <= vectors and not (grouped and per_group % v)] or [1]


def column_counts(target: Target, vectors: int, pixels: int) -> list[int]:
    """Pixels that a tile of ``vectors`` vectors may have, so that nothing is spilled."""
    step = products(target.instruction)
    return [
        c
        for c in range(1, min(pixels, 16) + 1)
        if c == 1 or _live(target, step.registers(c, vectors), c) <= LIVE
    ]


def _live(target: Target, registers: int, columns: int) -> int:
    inputs = 2 * columns if target.instruction == "smull" else columns
    return registers + inputs + WEIGHTS


def _cost(target: Target, pixels: int, vectors: int, window: Window, columns: int, count: int) -> float:
    """Time of all tiles, in products."""
    return sum(
        _tile_cost(target, window, c, v) * times
        for c, c_times in ((columns, pixels // columns), (pixels % columns, 1))
        for v, v_times in ((count, vectors // count), (vectors % count, 1))
        if (times := c_times * v_times) and c and v
    )


def _tile_cost(target: Target, window: Window, columns: int, vectors: int) -> float:
    """Time of a tile: its sum in words of four bytes, and its end."""
    words = ceil_div(window.run, window.word) * window.word // 4 * window.rows * window.columns
    loads = (columns / 4 + vectors) * _LOAD
    if target.instruction == "smull":
        # Three instructions for two words of two channels, and a dup for every column and word.
        work = 3 * columns * vectors + columns + loads
        latency = 8
    elif target.instruction == "smmla":
        # Two words at once of two pixels and two channels; a zip for every two pixels and two words.
        pairs = ceil_div(columns, 2)
        work = pairs * vectors + pairs / 2 + loads
        latency = 8
    else:
        work = columns * vectors + loads
        latency = 8
    return words * max(work, latency) + _EPILOGUE * columns * vectors + 6 * columns


def parallel_cycles(target: Target, macs: int, outputs: int) -> int:
    """What a kernel takes on one core, about."""
    return macs // target.macs_per_cycle + outputs // 2
