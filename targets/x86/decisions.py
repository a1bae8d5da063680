"""What the schedules do without tuning: decisions that the description of the target implies."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.targets.base import Target
from qcompiler.targets.cpu.shapes import ceil_div, divisors

EPILOGUE_COST = 8
"""Instructions that turn one vector of accumulators into outputs; weighed against the inner loop's."""


@dataclass(frozen=True)
class ConvDecision:
    """Decisions of a convolution's schedule.

    Attributes:
        tile_width: output columns whose accumulators are in registers at once.
        tile_blocks: blocks of output channels whose accumulators are in registers at once.
        channel_major: the loop over output channels is outside of the loop over rows.
    """

    tile_width: int
    tile_blocks: int
    channel_major: bool


def accumulator_budget(target: Target) -> int:
    """Vector registers for accumulators.

    Fewer than half of them: the weights of the tile, the broadcast inputs of the next steps and the constants of
    the epilogue live beside them, and LLVM spills at anything near the number of registers. Seven columns by two
    blocks is enough to hide the latency of the multiply-accumulate on 32 registers.
    """
    return 14 if target.vector_registers >= 32 else 6


def choose_lanes(target: Target, out_channels: int) -> int:
    """The full vector, or half of it where the last block would stand half empty."""
    full = target.int32_lanes
    half = full // 2
    if half >= 8 and ceil_div(out_channels, half) * half < ceil_div(out_channels, full) * full:
        wasted = ceil_div(out_channels, full) * full / out_channels
        if wasted > 1.2 * target.half_vector_cost:
            return half
    return full


def _tile_cost(width: int, tile_width: int, tile_blocks: int, k_steps: int) -> float:
    """Instructions of a tile for each of its accumulators, with the columns computed in vain."""
    computed = ceil_div(width, tile_width) * tile_width
    accumulators = tile_width * tile_blocks
    # One step: a multiply-accumulate an accumulator, a broadcast a column, a load a block of weights.
    # A tile with fewer accumulators than the latency of the instruction (4 to 5 cycles, two units) waits.
    step = max(accumulators, 8) + 0.35 * (tile_width + tile_blocks)
    cost = (k_steps * step + EPILOGUE_COST * accumulators) / accumulators * computed / width
    return cost * 1.03 if computed != width else cost  # the last tile goes through a buffer


def conv_decision(
    budget: int, width: int, blocks: int, k_steps: int, *, weight_bytes: int, input_bytes: int
) -> ConvDecision:
    """The schedule of a convolution without tuning.

    Args:
        budget: vector registers for accumulators.
        width: output columns.
        blocks: blocks of output channels that share their inputs.
        k_steps: multiply-accumulate steps of one accumulator.
        weight_bytes: size of the packed weights.
        input_bytes: size of the input.
    """
    _, tile_width, tile_blocks = min(
        (_tile_cost(width, tile_width, tile_blocks, k_steps), tile_width, tile_blocks)
        for tile_blocks in divisors(blocks, budget)
        for tile_width in range(1, min(width, budget // tile_blocks) + 1)
    )
    return ConvDecision(tile_width, tile_blocks, channel_major=weight_bytes > input_bytes)


def conv_decisions(
    target: Target, budget: int, default: ConvDecision, computed: int, blocks: int, k_steps: int
) -> list[ConvDecision]:
    """What tuning starts from: ``default``, and for every other structure its best tile.

    A structure is a loop order and a number of blocks in registers; the width of the tile is sampled within it, up to
    ``sampled_width``.

    Args:
        target: the chip.
        budget: vector registers for accumulators.
        default: what ``conv_decision`` gave.
        computed: output columns, with those computed in vain.
        blocks: blocks of output channels that share their inputs.
        k_steps: multiply-accumulate steps of one accumulator.
    """
    starts = [default]
    for tile_blocks in divisors(blocks, budget):
        widths = divisors(computed, sampled_width(target, tile_blocks))
        tile_width = min(widths, key=lambda w: _tile_cost(computed, w, tile_blocks, k_steps))
        for channel_major in (default.channel_major, not default.channel_major):
            if (tile_blocks, channel_major) != (default.tile_blocks, default.channel_major):
                starts.append(ConvDecision(tile_width, tile_blocks, channel_major))
    return starts


def sampled_width(target: Target, tile_blocks: int) -> int:
    """Columns of a tile at most when tuning: accumulators, weights and inputs fit in the registers."""
    return max(1, (target.vector_registers - 4) // tile_blocks)


def depthwise_tiles(target: Target, width: int) -> list[int]:
    """Output columns of a tile of the depthwise kernel with dot products, the default first.

    A column takes four vectors of accumulators; the columns of a tile share their interleaved inputs, so a tile of one
    column does too much, and a last tile of other width is a kernel of its own.
    """
    limit = 6 if target.vector_registers >= 32 else 2
    tiles = list(range(1, min(width, limit) + 1))
    # Each tile interleaves about two columns more than it computes; a last tile that is narrower does so too.
    default = min(tiles, key=lambda t: (ceil_div(width, t), t))
    return [default, *(t for t in tiles if t != default)]


def depthwise_tile(target: Target, width: int) -> int:
    """Output columns of a depthwise tile: accumulators and widened inputs share the registers."""
    budget = 8 if target.vector_registers >= 32 else 4
    return min(
        range(1, min(width, budget) + 1), key=lambda t: (ceil_div(width, t) * t / width * (1 + 1 / t), -t)
    )
