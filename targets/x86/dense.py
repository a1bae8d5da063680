"""Dense convolutions and matrix products, whatever their numbers: from extents and weights to a workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from numpy.typing import NDArray
from tvm import relax

from qcompiler.targets.base import Target
from qcompiler.targets.cpu import channels
from qcompiler.targets.cpu.lowering import Lowered, constant, shape_of_output
from qcompiler.targets.cpu.shapes import ConvShape, Kernel, ceil_div, unscheduled
from qcompiler.targets.workload import Workload
from qcompiler.targets.x86 import computes, decisions, layouts, schedules
from qcompiler.targets.x86.arithmetic import Arithmetic


@dataclass(frozen=True)
class Multiplier:
    """What multiplies and accumulates on a target.

    Attributes:
        arithmetic: the formats.
        instruction: the vendor's name of what the inner loop consists of.
        intrinsic: gives the name of the tensor intrinsic of some lanes.
        macs_per_cycle: of one core.
        accumulators: vector registers for sums.
        imported: LLVM code that a kernel of some lanes imports, if any.
    """

    arithmetic: Arithmetic
    instruction: str
    intrinsic: Callable[[int], str]
    macs_per_cycle: int
    accumulators: int
    imported: Callable[[int], str] | None = None


@dataclass(frozen=True)
class ConvPlan:
    """How a dense convolution is computed, whatever its weights.

    Attributes:
        arithmetic: the formats.
        rows: a row of the kernel is one run of elements.
        cut: of the channels into blocks.
        k_steps: steps of one accumulator.
        default: the schedule without tuning.
        computed: output columns, with those computed in vain.
    """

    arithmetic: Arithmetic
    rows: bool
    cut: channels.ChannelBlocks
    k_steps: int
    default: decisions.ConvDecision
    computed: int

    def kernel(
        self, shape: ConvShape, epilogue: computes.LastStep, pad_value: float, *, matrix: bool
    ) -> Kernel:
        return computes.conv2d(
            shape,
            self.cut,
            self.computed,
            epilogue,
            pad_value,
            self.arithmetic,
            matrix=matrix,
            rows=self.rows,
        )


def plan(shape: ConvShape, target: Target, multiplier: Multiplier, *, matrix: bool) -> ConvPlan:
    arithmetic = multiplier.arithmetic
    lanes = decisions.choose_lanes(target, shape.out_channels)
    rows = not matrix and computes.packs_rows(shape, arithmetic.word)
    kh, kw = (shape.kernel[0], 1) if rows else shape.kernel
    read = shape.in_channels * (shape.kernel[1] if rows else 1)
    cut = channels.channel_blocks(read, shape.out_channels, shape.groups, lanes, arithmetic.word)
    k_steps = cut.k_blocks * kh * kw
    inputs = shape.batch * shape.height * shape.width * shape.in_channels
    default = decisions.conv_decision(
        multiplier.accumulators,
        shape.out_width,
        cut.blocks_per_group,
        k_steps,
        weight_bytes=cut.blocks * lanes * k_steps * arithmetic.word * arithmetic.weight_bytes,
        input_bytes=inputs * arithmetic.activation_bytes,
    )
    computed = ceil_div(shape.out_width, default.tile_width) * default.tile_width
    return ConvPlan(arithmetic, rows, cut, k_steps, default, computed)


def lower(
    x: relax.Expr,
    shape: ConvShape,
    weight: NDArray[Any],
    pad_value: float,
    target: Target,
    multiplier: Multiplier,
    epilogue: computes.LastStep,
    operands: Callable[[int, int], Sequence[relax.Expr]],
    *,
    operator: str,
    matrix: bool,
    tunable: bool = True,
) -> Lowered:
    """The kernel of a convolution, or with ``matrix`` of a matrix product, of OIHW ``weight``.

    Args:
        x: the activations, NHWC or ``[M, K]``.
        shape: the extents; a matrix product is a 1x1 convolution of one row.
        weight: of the dtype of packed weights.
        pad_value: of the padding of ``x``.
        target: the chip.
        multiplier: what multiplies on it.
        epilogue: the last step.
        operands: the last step's arguments for a number of blocks of so many lanes.
        operator: name of the class of the workload.
        matrix: a matrix product.
        tunable: its schedules can be searched.
    """
    made = plan(shape, target, multiplier, matrix=matrix)
    cut, lanes = made.cut, made.cut.lanes
    if made.rows:  # one column, whose channels are those of all columns
        weight = weight.transpose(0, 3, 1, 2).reshape(shape.out_channels, -1, shape.kernel[0], 1)
        x = relax.op.reshape(x, (shape.batch, shape.height, shape.width * shape.in_channels))
    arithmetic = multiplier.arithmetic
    packed = layouts.pack_weight(weight, shape.groups, cut, arithmetic.word)
    kernel = made.kernel(shape, epilogue, pad_value, matrix=matrix)
    cycles = shape.macs // multiplier.macs_per_cycle + prod(shape_of_output(shape)) // 4
    sketches = tuple(
        partial(
            schedules.schedule_conv2d,
            kernel=kernel,
            decision=decision,
            lanes=lanes,
            dot=multiplier.intrinsic(lanes),
            sampled_width=decisions.sampled_width(target, decision.tile_blocks),
            cycles=cycles,
            vector=target.vector_bits // 8 // arithmetic.activation_bytes,
            imported=multiplier.imported(lanes) if multiplier.imported else None,
        )
        for decision in decisions.conv_decisions(
            target, multiplier.accumulators, made.default, made.computed, cut.blocks_per_group, made.k_steps
        )
    )
    workload = Workload(
        operator, shape.describe(matrix), unscheduled(kernel), sketches if tunable else sketches[:1], tunable
    )
    args = [x, constant(packed), *operands(cut.blocks, lanes)]
    return Lowered(workload, args, multiplier.instruction, arithmetic=str(arithmetic))
