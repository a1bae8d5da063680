"""What the kernels do without tuning: decisions that the description of the target implies."""

from __future__ import annotations

from qcompiler.targets.arm.dense import Decision
from qcompiler.targets.arm.layouts import VECTOR, Window, cut_channels, vector_counts, window_of
from qcompiler.targets.arm.products import products
from qcompiler.targets.base import Target
from qcompiler.targets.cpu.shapes import ConvShape, ceil_div

LIVE = 30
"""Registers for accumulators, the activations of a chunk and the weights of a step; LLVM wants one or two more."""

WEIGHTS = 4
"""Registers that weights in flight take."""

_LOAD = 4 / 3
"""Vector instructions in the time of a load: four pipelines against three on Neoverse-V1 and Apple M1; fewer on others."""

_LATENCY = 8
"""Products that must be under way at once: four cycles of latency in two pipelines."""

_PIXEL = 6
"""Instructions for the addresses of a pixel."""

_EPILOGUE = 7
"""Instructions that turn a vector of accumulators into bytes."""


def dense_decision(target: Target, shape: ConvShape) -> Decision:
    """The tile of a dense kernel without tuning."""
    word = products(target.instruction).word
    pixels = shape.batch * shape.out_height * shape.out_width
    vectors = ceil_div(shape.out_channels, VECTOR)
    best: tuple[float, int, int, int] | None = None
    for count in vector_counts(shape):
        window = window_of(shape, cut_channels(shape, count), word)
        for columns in column_counts(target, count, pixels):
            cost = _cost(target, pixels, vectors, window, columns, count)
            best = min(best or (cost, 0, columns, count), (cost, -columns * count, columns, count))
    assert best is not None
    inputs = shape.batch * shape.height * shape.width * shape.in_channels
    weights = shape.out_channels * shape.in_channels // shape.groups * shape.kernel[0] * shape.kernel[1]
    return Decision(best[2], best[3], channel_major=weights > inputs)


def column_counts(target: Target, vectors: int, pixels: int) -> list[int]:
    """Pixels that a tile of ``vectors`` vectors may have, so that nothing is spilled."""
    step = products(target.instruction)
    return [
        c
        for c in range(1, min(pixels, 16) + 1)
        if c == 1 or _live(target, step.registers(c, vectors), c) <= LIVE
    ]


def _live(target: Target, registers: int, columns: int) -> int:
    """Registers in use at once. Activations take them twice where they are spread (smull) or paired (smmla)."""
    inputs = {"smull": 2 * columns, "sdot": columns, "smmla": ceil_div(3 * columns, 2)}[target.instruction]
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
        work = 3.0 * columns * vectors + columns
    elif target.instruction == "smmla":
        # Two words at once of two pixels and two channels; a zip for every two pixels and two words.
        pairs = ceil_div(columns, 2)
        work = pairs * vectors + pairs / 2
    else:
        work = float(columns * vectors)
    step = max(work, loads, _LATENCY) + 0.1 * loads
    return words * step + _EPILOGUE * columns * vectors + _PIXEL * columns


def parallel_cycles(target: Target, shape: ConvShape) -> int:
    """What a dense kernel takes on one core, about."""
    outputs = shape.batch * shape.out_height * shape.out_width * shape.out_channels
    return shape.macs // target.macs_per_cycle + outputs // 2
