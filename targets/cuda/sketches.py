"""What tuning searches on GPUs: a stand-in of the implicit matrix product, its schedules, and the generator behind them.

The kernel is written, not scheduled. Its stand-in in tensor expressions is what the tuning logs know it by and what
schedules sample decisions on; ``finish`` replaces it by the kernel of these decisions. The stand-in computes the same,
though nobody builds it. Rows, columns and warps of a tile are the sketch's; the depth of k and the number of its stages,
which must fit into shared memory together, are one sample, and the blocks that share a tile's sums are another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import Any

from tvm import te, tirx
from tvm.ir import Expr
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ExprRV, LoopRV

from qcompiler.targets.base import GpuTarget
from qcompiler.targets.cpu.shapes import ConvShape, ceil_div
from qcompiler.targets.cuda.finish import Epilogue, Requantization
from qcompiler.targets.cuda.gemm import DEPTH, DEPTHS, MOST_STAGES, Gemm, Tile, even_splits
from qcompiler.targets.cuda.layouts import BLOCK, STEP, STEP_WORDS
from qcompiler.targets.workload import GENERATOR, Workload, generator

GEMM = "qc.cuda.gemm"
"""Name of the generator, and of the annotation with what it needs besides the decisions."""

ACCUMULATORS = (16, 64)
"""Sums of a thread, at least and at most: fewer read too much for each product, more leave no registers."""

MOST_WARPS = 8
"""Warps of a block that tuning tries."""

SPLITS = (1, 2, 3, 4, 6, 8, 12, 16)
"""Blocks that share a tile's sums, that tuning tries where k is long enough."""


@dataclass(frozen=True)
class Problem:
    """A convolution or a matrix product, as far as its generator must know it.

    Attributes:
        shape: the extents.
        epilogue: the last step.
        pad_value: of the input's padding.
        matrix: activations and output have two axes.
    """

    shape: ConvShape
    epilogue: Epilogue
    pad_value: int
    matrix: bool

    def encode(self) -> list[int]:
        """The problem as integers, for an annotation."""
        s, last, shift = self.shape, self.epilogue.requantization, self.epilogue.residual_shift
        return [
            s.batch, s.height, s.width, s.in_channels, s.out_channels, *s.kernel, *s.strides, *s.padding, *s.dilation,
            s.groups, *((0, 0, 0, 0) if last is None else (1, last.zero_point, last.lo, last.hi)),
            -1 if shift is None else shift, self.pad_value, int(self.matrix),
        ]  # fmt: skip

    @staticmethod
    def decode(values: Sequence[Any]) -> Problem:
        """The inverse of ``encode``."""
        (
            n, h, w, ci, co, kh, kw, sh, sw, top, left, bottom, right, dh, dw, groups,
            requantized, zero_point, lo, hi, shift, pad_value, matrix,
        ) = (int(v) for v in values)  # fmt: skip
        shape = ConvShape(n, h, w, ci, co, (kh, kw), (sh, sw), (top, left, bottom, right), (dh, dw), groups)
        last = Requantization(zero_point, lo, hi) if requantized else None
        return Problem(shape, Epilogue(last, None if shift < 0 else shift), pad_value, bool(matrix))

    def gemm(self, tile: Tile) -> Gemm:
        """The kernel with ``tile``."""
        return Gemm(self.shape, self.epilogue, tile, self.pad_value, self.matrix)


def stand_in(problem: Problem, tile: Tile) -> tirx.PrimFunc:
    """What the kernel computes, with its arguments; ``tile`` does not matter to them."""
    s, gemm, last = problem.shape, problem.gemm(tile), problem.epilogue.requantization
    of_group, outs, padded = s.in_channels // s.groups, gemm.out_channels, gemm.blocks * BLOCK
    pixel = (s.batch, s.out_height, s.out_width)
    extents = (gemm.pixels, s.out_channels) if problem.matrix else (*pixel, s.out_channels)
    inner = (gemm.pixels, gemm.depth) if problem.matrix else (s.batch, s.height, s.width, s.in_channels)
    steps = gemm.packed_depth // STEP
    x = te.placeholder(inner, "uint8", name="x")
    weight = te.placeholder((s.groups * gemm.blocks * steps * STEP_WORDS,), "int32", name="weight")
    constants = [
        te.placeholder((s.groups * padded,), dtype, name=name)
        for name, dtype in (("bias", "int32"), ("multiplier", "float32"))
    ]
    bias, multiplier = constants
    residual: list[te.Tensor] = []
    if problem.epilogue.residual_shift is not None:
        residual = [te.placeholder(extents, "uint8", name="residual")]
        residual += [te.placeholder((s.groups * padded,), "int32", name=f"residual_{n}") for n in ("multiplier", "offset")]  # fmt: skip
    k = te.reduce_axis((0, gemm.depth), "k")

    def product(*index: tirx.Var) -> Expr:
        group, channel = _split(index[-1], outs)
        if problem.matrix:
            value = x[index[0], k]
        else:
            tap, c = _split(k, of_group)
            row = index[1] * s.strides[0] + tirx.floordiv(tap, s.kernel[1]) * s.dilation[0] - s.padding[0]
            column = index[2] * s.strides[1] + tirx.floormod(tap, s.kernel[1]) * s.dilation[1] - s.padding[1]
            value = x[index[0], row, column, group * of_group + c]
            if any(s.padding):
                inside = tirx.all(row >= 0, row < s.height, column >= 0, column < s.width)
                value = tirx.if_then_else(inside, value, tirx.const(problem.pad_value, "uint8"))
        place, byte = _packed(group, channel, k, gemm.blocks, steps)
        factor = tirx.shift_right(tirx.shift_left(weight[place], 24 - 8 * byte), tirx.const(24, "int32"))
        return te.sum(value.astype("int32") * factor, axis=k)

    acc = te.compute(extents, product, name="acc")

    def finished(*index: tirx.Var) -> Expr:
        group, channel = _split(index[-1], outs)
        constant = group * padded + channel
        total = acc(*index) + bias[constant]
        if residual:
            share = residual[0](*index).astype("int32") * residual[1][constant] + residual[2][constant]
            # The shift as a division, whose number a log replaces.
            total = total + tirx.floordiv(share, 1 << int(problem.epilogue.residual_shift or 0))
        value = total.astype("float32") * multiplier[constant]
        return value if last is None else _plainly(value, last)

    out = te.compute(extents, finished, name="out")
    function = te.create_prim_func([x, weight, *constants, *residual, out])
    return function.with_attr("tirx.noalias", True).with_attr(GENERATOR, GEMM)


def _split(index: Expr, extent: int) -> tuple[Expr, Expr]:
    return tirx.floordiv(index, extent), tirx.floormod(index, extent)


def _packed(group: Expr, channel: Expr, k: Expr, blocks: int, steps: int) -> tuple[Expr, Expr]:
    """Word and byte of a weight, as ``layouts.pack_fragments`` places it."""
    block, of_block = _split(channel, BLOCK)
    pair, rest = _split(of_block, 8)  # channel: (column pair, fragment, of the pair)
    fragment, of_pair = _split(rest, 2)
    half, of_half = _split(fragment, 2)
    step, of_step = _split(k, STEP)
    k_half, word = _split(of_step, 16)
    lane = (2 * pair + of_pair) * 4 + tirx.floordiv(word, 4)
    word_of_step = ((half * 32 + lane) * 2 + of_half) * 2 + k_half
    return ((group * blocks + block) * steps + step) * STEP_WORDS + word_of_step, tirx.floormod(word, 4)


def _plainly(value: Expr, last: Requantization) -> Expr:
    """The last step by additions and bounds of which none may be left out: a log replaces their numbers.

    All are moved by 256, so that none of them is 0, which TVM would drop; a byte of the result is the same.
    """
    integer = tirx.call_pure_extern("int32", "__float2int_rn", value)
    shift, lo, hi = (tirx.const(256 + k, "int32") for k in (last.zero_point, last.lo, last.hi))
    moved = tirx.max(tirx.min(integer + shift, hi), lo)
    # The mask keeps TVM from folding the cast into constants that are no bytes.
    return tirx.bitwise_and(moved, tirx.const(255, "int32")).astype("uint8")


def schedule_gemm(
    sch: Schedule, *, problem: Problem, tile: Tile, pipelines: Sequence[int], splits: Sequence[int]
) -> None:
    """Samples the depth with its stages, and the blocks that share sums; the rest of ``tile`` is the sketch's."""
    pipeline = _sampled(sch, pipelines, _pipeline(tile.depth, tile.stages))
    shared = _sampled(sch, splits, tile.splits)
    rank = len(sch.get_loops(sch.get_sblock("out")))
    for name in ("acc", "out"):  # cut as the kernel does, for the cost model to see
        loops = sch.get_loops(sch.get_sblock(name))
        *pixels, channel = loops[:rank]
        pixel: LoopRV = sch.fuse(*pixels) if len(pixels) > 1 else pixels[0]
        row_tile, row = sch.split(pixel, [None, tile.rows])
        column_tile, column = sch.split(channel, [None, tile.columns])
        inner: list[LoopRV] = []
        if name == "acc":
            part, within = sch.split(loops[rank], [shared, None])
            outer, step = sch.split(within, [None, pipeline])
            inner = [part, outer, step]
        sch.reorder(row_tile, column_tile, *inner, row, column)
    out = sch.get_sblock("out")
    sch.annotate(out, GEMM, problem.encode())
    sch.annotate(out, f"{GEMM}.structure", [tile.rows, tile.columns, *tile.warps])
    sch.annotate(out, f"{GEMM}.pipeline", pipeline)
    sch.annotate(out, f"{GEMM}.splits", shared)


def _sampled(sch: Schedule, choices: Sequence[int], decision: int) -> ExprRV:
    """One of ``choices``; the decision is ``decision``."""
    share = [1 / len(choices)] * len(choices)
    return sch.sample_categorical(list(choices), share, decision=list(choices).index(decision))


def _pipeline(depth: int, stages: int) -> int:
    """Depth and stages as one number: near ones are alike."""
    return depth + stages


def _depth_and_stages(pipeline: int) -> tuple[int, int]:
    depth = max(d for d in DEPTHS if d < pipeline)
    return depth, pipeline - depth


@generator(GEMM)
def _generate_gemm(annotations: Mapping[str, Any]) -> tirx.PrimFunc:
    problem = Problem.decode(annotations[GEMM])
    rows, columns, *warps = (int(v) for v in annotations[f"{GEMM}.structure"])
    depth, stages = _depth_and_stages(int(annotations[f"{GEMM}.pipeline"]))
    tile = Tile(rows, columns, (warps[0], warps[1]), stages, depth)
    shared = even_splits(problem.gemm(tile).k_tiles, int(annotations[f"{GEMM}.splits"]))
    return problem.gemm(replace(tile, splits=shared)).function()


def tiles(shape: ConvShape, target: GpuTarget, default: Tile) -> list[Tile]:
    """The tiles that tuning tries, ``default`` first; such as compute more than twice the output are left out."""
    pixels = shape.batch * shape.out_height * shape.out_width
    columns = ceil_div(shape.out_channels // shape.groups, BLOCK) * BLOCK
    found = [default]
    for rows in (16, 32, 64, 128, 256):
        for width in (32, 64, 128):
            waste = ceil_div(pixels, rows) * rows * ceil_div(columns, width) * width / (pixels * columns)
            for warps in ((a, b) for a in (1, 2, 4, 8) for b in (1, 2, 4)):
                if rows % (16 * warps[0]) or width % (BLOCK * warps[1]) or prod(warps) > MOST_WARPS:
                    continue
                few, most = ACCUMULATORS
                tile = Tile(rows, width, warps, 2)
                fits = (
                    few <= rows * width // tile.threads <= most and tile.shared_bytes <= target.shared_bytes
                )
                known = (default.rows, default.columns, default.warps) == (rows, width, warps)
                if fits and not known and waste <= 2:
                    found.append(tile)
    return found


def gemm_workload(problem: Problem, target: GpuTarget, default: Tile) -> Workload:
    """A dense convolution or a matrix product to schedule; ``default`` is the tile without tuning."""
    shape = problem.shape
    packed = problem.gemm(default).packed_depth
    sketches = []
    for tile in tiles(shape, target, default):
        pipelines = [
            _pipeline(depth, stages)
            for depth in DEPTHS
            for stages in range(2, MOST_STAGES + 1)
            if packed % depth == 0
            and replace(tile, depth=depth, stages=stages).shared_bytes <= target.shared_bytes
        ]
        splits = sorted({s for s in SPLITS if s <= max(packed // (2 * DEPTH), 1)} | {default.splits})
        if tile is not default:
            depth, stages = _depth_and_stages(
                min(pipelines, key=lambda p: abs(p - _pipeline(default.depth, default.stages)))
            )
            tile = replace(tile, stages=stages, depth=depth, splits=default.splits)
        sketches.append(
            partial(schedule_gemm, problem=problem, tile=tile, pipelines=pipelines, splits=splits)
        )
    operator = "dense" if problem.matrix else "conv2d"
    return Workload(operator, shape.describe(problem.matrix), stand_in(problem, default), tuple(sketches))
