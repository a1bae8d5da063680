"""What the kernels do without tuning: decisions that the description of the target implies."""

from __future__ import annotations

from qcompiler.targets.arm.cores import core_of
from qcompiler.targets.arm.dense import Decision, fits
from qcompiler.targets.arm.layouts import VECTOR, Window, cut_channels, vector_counts, window_of
from qcompiler.targets.arm.products import products
from qcompiler.targets.base import Target
from qcompiler.targets.cpu.cores import Core
from qcompiler.targets.cpu.shapes import ConvShape, ceil_div

LIVE = 30
"""Registers for accumulators, the activations of a chunk and the weights of a step; LLVM wants one or two more, or it
spills in some surroundings of the loop.
"""

LIVE_IN_ORDER = 31
"""The same where LLVM schedules for a core that works in order: it begins no load long before its use."""

WEIGHTS = 4
"""Registers that weights in flight take."""

_PIXEL = 6
"""Instructions for the addresses of a pixel."""

_EPILOGUE = 7
"""Vector instructions that turn a vector of accumulators into bytes."""

_OVERLAP = 0.1
"""Share of the loads' time that is not hidden behind products on a core that reorders instructions."""


_EXPOSED = 0.5
"""Share of the loads of eight bytes that no product hides: the first ones of a chunk, which its products wait for."""


def dense_decision(target: Target, shape: ConvShape) -> Decision:
    """The tile of a dense kernel without tuning."""
    word = products(target.instruction).word
    pixels = shape.batch * shape.out_height * shape.out_width
    vectors = ceil_div(shape.out_channels, VECTOR)
    best: tuple[float, int, int, int] | None = None
    counts = vector_counts(shape)
    for count in [v for v in counts if _live(target, 1, v) <= live_limit(target)] or counts[:1]:
        window = window_of(shape, cut_channels(shape, count), word)
        for columns in column_counts(target, count, pixels):
            cost = _cost(target.instruction, core_of(target), pixels, vectors, window, columns, count)
            best = min(best or (cost, 0, columns, count), (cost, -columns * count, columns, count))
    assert best is not None
    inputs = shape.batch * shape.height * shape.width * shape.in_channels
    weights = shape.out_channels * shape.in_channels // shape.groups * shape.kernel[0] * shape.kernel[1]
    return Decision(best[2], best[3], channel_major=weights > inputs)


def dense_decisions(target: Target, shape: ConvShape, default: Decision) -> list[Decision]:
    """What tuning starts from: ``default``, and for every other structure its best tile.

    A structure is a loop order and a number of vectors that tiles of the default's packed weights may have; columns and
    unrolling are sampled within it.
    """
    word = products(target.instruction).word
    pixels = shape.batch * shape.out_height * shape.out_width
    vectors = ceil_div(shape.out_channels, VECTOR)
    window = window_of(shape, cut_channels(shape, default.vectors), word)
    starts = [default]
    for count in range(1, vectors + 1):
        columns = column_counts(target, count, pixels)
        # Tiles of several groups would mix their inputs.
        if not fits(default.vectors, count) or (shape.groups > 1 and count > default.vectors):
            continue
        if _live(target, 1, count) > live_limit(target):
            continue
        best = min(
            columns,
            key=lambda c: _cost(target.instruction, core_of(target), pixels, vectors, window, c, count),
        )
        for channel_major in (default.channel_major, not default.channel_major):
            if (count, channel_major) != (default.vectors, default.channel_major):
                starts.append(Decision(best, count, channel_major))
    return starts


def loads_halves(target: Target) -> bool:
    """Whether dense kernels load activations by eight bytes: ``sdot`` takes its words from there as well."""
    return target.instruction == "sdot" and core_of(target).half_loads


def column_counts(target: Target, vectors: int, pixels: int) -> list[int]:
    """Pixels that a tile of ``vectors`` vectors may have, so that nothing is spilled."""
    return [
        c for c in range(1, min(pixels, 16) + 1) if c == 1 or _live(target, c, vectors) <= live_limit(target)
    ]


def live_limit(target: Target) -> int:
    """Registers that a tile may use, so that LLVM spills none."""
    return LIVE_IN_ORDER if loads_halves(target) else LIVE


def _live(target: Target, columns: int, vectors: int) -> int:
    """Registers in use at once. Activations take them twice where they are spread (smull) or paired (smmla)."""
    inputs = {"smull": 2 * columns, "sdot": columns, "smmla": ceil_div(3 * columns, 2)}[target.instruction]
    weights = WEIGHTS
    if target.instruction == "smull" and core_of(target).in_order:
        # LLVM loads the weights of two words well ahead there, and two products wait for their addition.
        weights = max(WEIGHTS, 2 * vectors + 2)
    return products(target.instruction).registers(columns, vectors) + inputs + weights


def _cost(
    instruction: str, core: Core, pixels: int, vectors: int, window: Window, columns: int, count: int
) -> float:
    """Cycles of all tiles."""
    return sum(
        _tile_cost(instruction, core, window, c, v) * times
        for c, c_times in ((columns, pixels // columns), (pixels % columns, 1))
        for v, v_times in ((count, vectors // count), (vectors % count, 1))
        if (times := c_times * v_times) and c and v
    )


def _tile_cost(instruction: str, core: Core, window: Window, columns: int, vectors: int) -> float:
    """Cycles of a tile: its sum in words of four bytes, and its end."""
    words = ceil_div(window.run, window.word) * window.word // 4 * window.rows * window.columns
    loads = columns / 4 + vectors
    if instruction == "smull":
        # Three instructions for two words of two channels, and a dup for every column and word.
        work = 3.0 * columns * vectors + columns
    elif instruction == "smmla":
        # Two words at once of two pixels and two channels; a zip for every two pixels and two words.
        pairs = ceil_div(columns, 2)
        work = pairs * vectors + pairs / 2
    else:
        work = float(columns * vectors)
    if core.half_loads and instruction == "sdot":
        step = work / core.vector + 2.0 * vectors / core.load + _EXPOSED * columns / 2
    elif core.in_order:
        step = work / core.vector + loads / core.load
    else:
        # An accumulator is added to once a word; smmla takes two words at once.
        chain = core.latency * 4 / window.word
        loading = loads / core.load
        step = max(work / core.vector, loading, (work + loads) / core.issue, chain) + _OVERLAP * loading
    return words * step + _EPILOGUE * columns * vectors / core.vector + _PIXEL * columns / core.issue


def parallel_cycles(target: Target, shape: ConvShape) -> int:
    """What a dense kernel takes on one core, about."""
    outputs = shape.batch * shape.out_height * shape.out_width * shape.out_channels
    return shape.macs // target.macs_per_cycle + outputs // 2
