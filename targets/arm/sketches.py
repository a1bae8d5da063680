"""What tuning searches on ARM: stand-ins of the written kernels, their schedules, and the generators behind them.

Dense and depthwise kernels are written out in vectors. Each has a stand-in in tensor expressions that is known by the
tuning logs and that schedules sample decisions on; ``finish`` replaces it by the kernel of these decisions. The stand-in
computes the same, though nobody builds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, get_args

from tvm import te, tirx
from tvm.ir import Expr
from tvm.s_tir import Schedule
from tvm.s_tir.schedule import ExprRV, LoopRV

from qcompiler.targets.arm import decisions, dense, depthwise
from qcompiler.targets.arm.finish import Epilogue
from qcompiler.targets.arm.layouts import BLOCK, CHUNK, VECTOR
from qcompiler.targets.arm.requantization import Requantization
from qcompiler.targets.base import DotProduct, Target
from qcompiler.targets.cpu.shapes import ConvShape, divisors
from qcompiler.targets.cpu.storage import SIGNED
from qcompiler.targets.workload import GENERATOR, Workload, generator

DENSE, DEPTHWISE = "qc.arm.dense", "qc.arm.depthwise"
"""Names of the generators, and of the annotations with what they need besides the decisions."""

PAIRED = "qc.arm.paired"
"""Attribute of a stand-in: two products fit in 16 bits. A kernel for such weights must not serve others."""

UNROLL = 4
"""Chunks of a run that tuning unrolls at most."""

_INSTRUCTIONS: tuple[str, ...] = get_args(DotProduct)


@dataclass(frozen=True)
class Problem:
    """A convolution or a matrix product, as far as its generator must know it.

    Attributes:
        shape: extents; padding is zero.
        epilogue: what happens to a sum.
        instruction: that multiplies.
        packed: vectors of a block of packed weights; of a depthwise convolution none.
        matrix: activations and output are ``[M, K]`` and ``[M, CO]``.
        paired: no weight is -128.
        halves: activations of a dense kernel are loaded by eight bytes.
        cycles: what it takes on one core, about.
    """

    shape: ConvShape
    epilogue: Epilogue
    instruction: str
    packed: int
    matrix: bool
    paired: bool
    halves: bool
    cycles: int

    def encode(self) -> list[int]:
        """The problem as integers, for an annotation."""
        s, last, shift = self.shape, self.epilogue.requantization, self.epilogue.residual_shift
        return [
            s.batch, s.height, s.width, s.in_channels, s.out_channels, *s.kernel, *s.strides, *s.dilation, s.groups,
            *((0, 0, 0, 0) if last is None else (1, last.zero_point, last.lo, last.hi)), -1 if shift is None else shift,
            _INSTRUCTIONS.index(self.instruction), self.packed, int(self.matrix), int(self.paired),
            int(self.halves), min(self.cycles, 2**31 - 1),
        ]  # fmt: skip

    @staticmethod
    def decode(values: Sequence[Any]) -> Problem:
        """The inverse of ``encode``."""
        (
            n, h, w, ci, co, kh, kw, sh, sw, dh, dw, groups, requantized, zero_point, lo, hi, shift,
            instruction, packed, matrix, paired, halves, cycles,
        ) = (int(v) for v in values)  # fmt: skip
        shape = ConvShape(n, h, w, ci, co, (kh, kw), (sh, sw), (0, 0, 0, 0), (dh, dw), groups)
        epilogue = Epilogue(
            Requantization(zero_point, lo, hi) if requantized else None, None if shift < 0 else shift
        )
        return Problem(
            shape,
            epilogue,
            _INSTRUCTIONS[instruction],
            packed,
            bool(matrix),
            bool(paired),
            bool(halves),
            cycles,
        )

    def dense(self, decision: dense.Decision) -> dense.Dense:
        """The dense kernel with ``decision``."""
        return dense.Dense(
            self.shape, self.epilogue, self.instruction, self.packed, decision,
            matrix=self.matrix, paired=self.paired, halves=self.halves,
        )  # fmt: skip

    def depthwise(self, decision: depthwise.Decision) -> depthwise.Depthwise:
        """The depthwise kernel with ``decision``."""
        sdot = depthwise.uses_sdot(self.instruction, self.shape)
        return depthwise.Depthwise(self.shape, self.epilogue, decision, sdot=sdot, paired=self.paired)


def _plainly(epilogue: Epilogue) -> Epilogue:
    """``epilogue`` in a form whose constants a tuning log can leave out."""
    last = epilogue.requantization
    return (
        epilogue
        if last is None
        else Epilogue(_Plain(last.zero_point, last.lo, last.hi), epilogue.residual_shift)
    )


class _Plain(Requantization):
    """The same numbers by additions and bounds, of which no number may be left out.

    All are moved by 256, so that none of them is 0, which TVM would drop.
    """

    def __call__(self, value: Expr) -> Expr:
        rounded = tirx.call_llvm_pure_intrin("float32", "llvm.roundeven", value)
        shift, lo, hi = (tirx.const(256.0 + k, "float32") for k in (self.zero_point, self.lo, self.hi))
        bounded = tirx.max(tirx.min(rounded + shift, hi), lo)
        return (bounded.astype("int32") - tirx.const(256 + SIGNED.offset, "int32")).astype("int8")


def dense_stand_in(problem: Problem) -> tirx.PrimFunc:
    """What ``dense.Dense`` computes, with its arguments."""
    s, kernel = problem.shape, problem.dense(dense.Decision(1, problem.packed, channel_major=False))
    window, cut, epilogue = kernel.window, kernel.cut, _plainly(problem.epilogue)
    (n, oh, ow, co), lanes, words = (
        (s.batch, s.out_height, s.out_width, s.out_channels),
        cut.lanes,
        window.starts,
    )
    inner = (s.width, s.in_channels) if problem.matrix else (n, s.height, s.width, s.in_channels)
    extents = (ow, co) if problem.matrix else (n, oh, ow, co)
    x = te.placeholder(inner, "int8", name="x")
    weight = te.placeholder((cut.blocks, window.words, lanes, window.word), "int8", name="weight")
    kh, kw = te.reduce_axis((0, window.rows), "kh"), te.reduce_axis((0, window.columns), "kw")
    word, byte = te.reduce_axis((0, len(words)), "word"), te.reduce_axis((0, window.word), "byte")
    whole = window.run // CHUNK * CHUNK // window.word
    early = len(words) * window.word - window.run  # bytes that the last words begin early
    start: Expr = word * window.word
    if early > 0 and whole:
        start = tirx.Select(word >= whole, start - early, start)
    elif early > 0:
        start = tirx.min(start, max(window.run - window.word, 0))
    place = tirx.min(start + byte, window.run - 1) if window.run < window.word else start + byte

    def product(*index: tirx.Var) -> Expr:
        *pixel, channel = index
        block, lane = tirx.floordiv(channel, lanes), tirx.floormod(channel, lanes)
        group: Expr | int = 0
        if cut.blocks_per_group != cut.blocks:
            group = tirx.floordiv(block, cut.blocks_per_group) * cut.group_inputs
        if problem.matrix:
            value = x[pixel[0], place]
        else:
            row = pixel[1] * s.strides[0] + kh * s.dilation[0]
            column = pixel[2] * s.strides[1] + kw * s.dilation[1] + tirx.floordiv(place, s.in_channels)
            value = x[pixel[0], row, column, group + tirx.floormod(place, s.in_channels)]
        at = (kh * window.columns + kw) * len(words) + word
        return te.sum(
            value.astype("int32") * weight[block, at, lane, byte].astype("int32"), axis=[kh, kw, word, byte]
        )

    acc = te.compute(extents, product, name="acc")
    args = epilogue.arguments(cut.blocks, lanes, extents)

    def finished(*index: tirx.Var) -> Expr:
        block, lane = tirx.floordiv(index[-1], lanes), tirx.floormod(index[-1], lanes)
        residual = None if epilogue.residual_shift is None else args[2](*index)
        return epilogue(acc(*index), block, lane, args, residual)

    out = te.compute(extents, finished, name="out")
    return _marked([x, weight, *args, out], DENSE, problem)


def depthwise_stand_in(problem: Problem) -> tirx.PrimFunc:
    """What ``depthwise.Depthwise`` computes, with its arguments."""
    s, kernel = problem.shape, problem.depthwise(depthwise.Decision(1))
    epilogue, extents = _plainly(problem.epilogue), (s.batch, s.out_height, s.out_width, s.out_channels)
    x = te.placeholder((s.batch, s.height, s.width, s.in_channels), "int8", name="x")
    weight = te.placeholder([int(d) for d in kernel.weight.shape], "int8", name="weight")
    kh, kw = te.reduce_axis((0, s.kernel[0]), "kh"), te.reduce_axis((0, s.kernel[1]), "kw")

    def place(channel: Expr) -> tuple[Expr, Expr]:
        block = tirx.floordiv(channel, BLOCK)
        return block, channel - tirx.min(block * BLOCK, max(s.out_channels - BLOCK, 0))

    def product(b: tirx.Var, i: tirx.Var, j: tirx.Var, channel: tirx.Var) -> Expr:
        block, lane = place(channel)
        value = x[b, i * s.strides[0] + kh * s.dilation[0], j * s.strides[1] + kw * s.dilation[1], channel]
        word = depthwise.WORD
        tap = (
            weight[block, kw, tirx.floordiv(kh, word), lane, tirx.floormod(kh, word)]
            if kernel.sdot
            else weight[block, kh, kw, lane]
        )
        return te.sum(value.astype("int32") * tap.astype("int32"), axis=[kh, kw])

    acc = te.compute(extents, product, name="acc")
    args = epilogue.arguments(kernel.blocks, BLOCK, extents)

    def finished(*index: tirx.Var) -> Expr:
        residual = None if epilogue.residual_shift is None else args[2](*index)
        return epilogue(acc(*index), *place(index[-1]), args, residual)

    out = te.compute(extents, finished, name="out")
    return _marked([x, weight, *args, out], DEPTHWISE, problem)


def _marked(tensors: list[te.Tensor], name: str, problem: Problem) -> tirx.PrimFunc:
    function = te.create_prim_func(tensors).with_attr("tirx.noalias", True).with_attr(GENERATOR, name)
    return function.with_attr(PAIRED, int(problem.paired))


def _sampled(sch: Schedule, choices: Sequence[int], decision: int) -> ExprRV:
    """One of ``choices``; the decision is ``decision``."""
    return sch.sample_categorical(
        list(choices), [1 / len(choices)] * len(choices), decision=list(choices).index(decision)
    )


def _tiled(sch: Schedule, columns: ExprRV, lanes: int, *, channel_major: bool) -> None:
    """Cuts sums and results into tiles as the kernel does, for the cost model to see."""
    rank = len(sch.get_loops(sch.get_sblock("out")))
    for name in ("acc", "out"):
        loops = sch.get_loops(sch.get_sblock(name))
        *pixels, channel = loops[:rank]
        pixel: LoopRV = sch.fuse(*pixels) if len(pixels) > 1 else pixels[0]
        tile, column = sch.split(pixel, [None, columns])
        panel, lane = sch.split(channel, [None, lanes])
        outer = [panel, tile] if channel_major else [tile, panel]
        sch.reorder(*outer, *loops[rank:], column, lane)


def schedule_dense(
    sch: Schedule, *, problem: Problem, decision: dense.Decision, columns: Sequence[int], unrolls: Sequence[int]
) -> None:  # fmt: skip
    """Samples the columns of a tile and the unrolling; vectors and loop order are the sketch's."""
    width, unroll = _sampled(sch, columns, decision.columns), _sampled(sch, unrolls, decision.unroll)
    _tiled(sch, width, decision.vectors * VECTOR, channel_major=decision.channel_major)
    out = sch.get_sblock("out")
    sch.annotate(out, DENSE, problem.encode())
    sch.annotate(out, f"{DENSE}.structure", [decision.vectors, int(decision.channel_major)])
    sch.annotate(out, f"{DENSE}.columns", width)
    sch.annotate(out, f"{DENSE}.unroll", unroll)


@generator(DENSE)
def _generate_dense(annotations: Mapping[str, Any]) -> tirx.PrimFunc:
    problem = Problem.decode(annotations[DENSE])
    vectors, channel_major = (int(v) for v in annotations[f"{DENSE}.structure"])
    columns, unroll = (int(annotations[f"{DENSE}.{name}"]) for name in ("columns", "unroll"))
    decision = dense.Decision(columns, vectors, bool(channel_major), unroll)
    return problem.dense(decision).function(problem.cycles)


def schedule_depthwise(
    sch: Schedule, *, problem: Problem, decision: depthwise.Decision, columns: Sequence[int]
) -> None:  # fmt: skip
    """Samples the columns of a tile; the loop order is the sketch's."""
    width = _sampled(sch, columns, decision.columns)
    _tiled(sch, width, BLOCK, channel_major=decision.channel_major)
    out = sch.get_sblock("out")
    sch.annotate(out, DEPTHWISE, problem.encode())
    sch.annotate(out, f"{DEPTHWISE}.structure", int(decision.channel_major))
    sch.annotate(out, f"{DEPTHWISE}.columns", width)


@generator(DEPTHWISE)
def _generate_depthwise(annotations: Mapping[str, Any]) -> tirx.PrimFunc:
    problem = Problem.decode(annotations[DEPTHWISE])
    channel_major = bool(int(annotations[f"{DEPTHWISE}.structure"]))
    decision = depthwise.Decision(int(annotations[f"{DEPTHWISE}.columns"]), channel_major)
    return problem.depthwise(decision).function(problem.cycles)


def dense_workload(problem: Problem, target: Target, default: dense.Decision) -> Workload:
    """A dense convolution or a matrix product to schedule; ``default`` is the tile without tuning."""
    shape = problem.shape
    pixels = shape.batch * shape.out_height * shape.out_width
    chunks = problem.dense(default).window.run // CHUNK
    unrolls = [u for u in divisors(max(chunks, 1), UNROLL) if u != 3]
    sketches = []
    choices = 0
    for decision in decisions.dense_decisions(target, shape, default):
        columns = decisions.column_counts(target, decision.vectors, pixels)
        choices += len(columns) * len(unrolls)
        sketches.append(
            partial(schedule_dense, problem=problem, decision=decision, columns=columns, unrolls=unrolls)
        )
    operator = "dense" if problem.matrix else "conv2d"
    name = shape.describe(problem.matrix)
    return Workload(operator, name, dense_stand_in(problem), tuple(sketches), choices > 1)


def depthwise_workload(problem: Problem) -> Workload:
    """A depthwise convolution to schedule."""
    shape = problem.shape
    columns, default = depthwise.column_counts(shape), depthwise.decision(shape)
    orders = (default, depthwise.Decision(default.columns, not default.channel_major))
    sketches = tuple(
        partial(schedule_depthwise, problem=problem, decision=decision, columns=columns)
        for decision in orders
    )
    name = shape.describe(matrix=False)
    return Workload("depthwise_conv2d", name, depthwise_stand_in(problem), sketches)
