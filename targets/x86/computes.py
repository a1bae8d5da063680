"""What the x86 kernels compute, in tensor expressions over NHWC activations and packed weights.

The formulas are those of ``qcompiler.operators``. Block names (``pad``, ``acc``, ``requantize``, ``out``) are what the
schedules hold on to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from tvm import te, tirx
from tvm.ir import Expr

from qcompiler.targets.cpu import epilogue as epilogues
from qcompiler.targets.cpu.channels import ChannelBlocks
from qcompiler.targets.cpu.shapes import ConvShape, Kernel, ceil_div
from qcompiler.targets.x86.arithmetic import INT8, Arithmetic


def i32(value: Expr) -> Expr:
    return value.astype("int32")


def round_half_even(value: Expr) -> Expr:
    """Nearest int32 of a float32 of magnitude below 2**31: ``vcvtps2dq``, which rounds halves to even."""
    return tirx.call_llvm_pure_intrin(str(value.ty.dtype).replace("float", "int"), "llvm.lrint", value)


@dataclass(frozen=True)
class Requantization:
    """``clip(rne(value) + zero_point, lo, hi)``.

    Attributes:
        zero_point: added after rounding.
        lo: lower bound of the result, 0 or more.
        hi: upper bound of the result, 255 or less.
        bounded: the magnitude of ``value`` is known to be below 2**30, so that it needs no upper bound before it
            becomes an integer.
    """

    zero_point: int
    lo: int
    hi: int
    bounded: bool

    def __call__(self, value: Expr) -> Expr:
        """``value`` is a float32 or a vector of them."""
        lanes = str(value.ty.dtype).removeprefix("float32")

        def constant(number: float, dtype: str) -> Expr:
            scalar = tirx.const(number, dtype)
            return tirx.Broadcast(scalar, int(lanes[1:])) if lanes else scalar

        # Bounding before rounding gives the same: the bounds are integers and rounding is monotonic.
        if not self.bounded:
            value = tirx.min(value, constant(float(self.hi - self.zero_point), "float32"))
        value = tirx.max(value, constant(float(self.lo - self.zero_point), "float32"))
        integer = round_half_even(value)
        if self.zero_point:
            integer = integer + constant(self.zero_point, "int32")
        # Not negative here, so the unsigned minimum is right, and it is one instruction with the narrowing store.
        return tirx.min(integer.astype("uint32" + lanes), constant(self.hi, "uint32")).astype("uint8" + lanes)


def bounded(value: Expr, lo: int, hi: int) -> Expr:
    """An int32 between ``lo`` and ``hi`` as a byte."""
    above = tirx.max(value, tirx.const(lo, "int32"))
    return tirx.min(above.astype("uint32"), tirx.const(hi, "uint32")).astype("uint8")


def packs_rows(shape: ConvShape, word: int) -> bool:
    """Whether a row of the kernel is read as one run of elements, columns and channels together.

    With few channels this takes fewer reads of ``word`` elements than padding the channels to a multiple of it.
    """
    row = shape.kernel[1] * shape.in_channels
    plain = shape.groups == 1 and shape.dilation[1] == 1 and shape.kernel[1] > 1
    return (
        plain
        and shape.in_channels % word != 0
        and ceil_div(row, word) <= shape.kernel[1] * ceil_div(shape.in_channels, word)
    )


def padded_rows(x: te.Tensor, shape: ConvShape, length: int, pad_value: float) -> te.Tensor:
    """``x``, ``[N, H, W * C]``, with its borders filled with ``pad_value`` and rows of at least ``length`` elements.

    Returns ``x`` itself where nothing is to be added.
    """
    n, h, row = (int(d) for d in x.shape)
    top, left, bottom, right = shape.padding
    first = left * shape.in_channels
    full = max(row + (left + right) * shape.in_channels, length)
    if not (top or bottom or full > row):
        return x

    def element(b: tirx.Var, i: tirx.Var, f: tirx.Var) -> Expr:
        inside = [i >= top, i < h + top] if top or bottom else []
        if full > row:
            inside += [f >= first, f < row + first]
        return tirx.if_then_else(
            tirx.all(*inside), x[b, i - top, f - first], tirx.const(pad_value, str(x.dtype))
        )

    return te.compute((n, h + top + bottom, full), element, name="pad")


def padded_input(x: te.Tensor, shape: ConvShape, width: int, channels: int, pad_value: float) -> te.Tensor:
    """``x`` with its borders filled with ``pad_value``, at least ``width`` columns and ``channels`` channels.

    Returns ``x`` itself where nothing is to be added.
    """
    n, h, w, c = (int(d) for d in x.shape)
    top, left, bottom, right = shape.padding
    full = max(w + left + right, width)
    if not (top or bottom or full > w or channels > c):
        return x

    def element(b: tirx.Var, i: tirx.Var, j: tirx.Var, k: tirx.Var) -> Expr:
        inside = []
        if top or bottom:
            inside += [i >= top, i < h + top]
        if full > w:
            inside += [j >= left, j < w + left]
        if channels > c:
            inside += [k < c]
        return tirx.if_then_else(
            tirx.all(*inside), x[b, i - top, j - left, k], tirx.const(pad_value, str(x.dtype))
        )

    return te.compute((n, h + top + bottom, full, channels), element, name="pad")


Epilogue = epilogues.Epilogue[Requantization]
"""What happens to an accumulator."""


class LastStep(Protocol):
    """What happens to an accumulator, in integers or in float: see :class:`Epilogue`."""

    @property
    def residual(self) -> int | None: ...

    def arguments(self, blocks: int, lanes: int, output: Sequence[int]) -> list[te.Tensor]: ...

    def __call__(
        self, accumulator: Expr, block: Expr, lane: Expr, args: Sequence[te.Tensor], residual: Expr | None
    ) -> Expr: ...


def conv2d(
    shape: ConvShape,
    cut: ChannelBlocks,
    computed: int,
    epilogue: LastStep,
    pad_value: float,
    arithmetic: Arithmetic = INT8,
    *,
    matrix: bool = False,
    rows: bool = False,
) -> Kernel:
    """A dense or grouped convolution; with ``matrix`` the activations are ``[M, K]`` and ``[M, CO]``.

    With ``rows`` the activations are ``[N, H, W * C]`` and ``cut`` is that of a kernel of one column whose input
    channels are those of all columns.

    The arguments are x, packed weights, the epilogue's arguments, output. ``computed`` columns are computed, the
    output's and as many more as make whole tiles.
    """
    n, oh, ow, co = shape.batch, shape.out_height, shape.out_width, shape.out_channels
    kh, kw = shape.kernel
    sh, sw = shape.strides
    dh, dw = shape.dilation
    lanes, word = cut.lanes, arithmetic.word
    whole_tiles = computed == ow
    whole_blocks = cut.blocks * lanes == co
    channels = shape.in_channels
    last_group = (cut.blocks // cut.blocks_per_group - 1) * cut.group_inputs
    read_channels = max(channels, last_group + cut.k_blocks * word)

    if matrix:
        x = te.placeholder((shape.width, channels), arithmetic.activation, name="x")
        source = x
        if read_channels > channels:
            source = te.compute(
                (shape.width, read_channels),
                lambda m, k: tirx.if_then_else(k < channels, x[m, k], tirx.const(0, arithmetic.activation)),
                name="pad",
            )

        def read(b: Expr, i: Expr, j: Expr, k: Expr) -> Expr:
            return source[j if whole_tiles else tirx.min(j, ow - 1), k]
    elif rows:
        x = te.placeholder((n, shape.height, shape.width * channels), arithmetic.activation, name="x")
        source = padded_rows(x, shape, (computed - 1) * sw * channels + cut.k_blocks * word, pad_value)
        kw = 1

        def read(b: Expr, i: Expr, j: Expr, k: Expr) -> Expr:
            return source[b, i, j * channels + k]
    else:
        x = te.placeholder((n, shape.height, shape.width, channels), arithmetic.activation, name="x")
        clamped = shape.pointwise and read_channels == channels
        needed = shape.width if clamped else (computed - 1) * sw + (kw - 1) * dw + 1
        source = padded_input(x, shape, needed, read_channels, pad_value)

        def read(b: Expr, i: Expr, j: Expr, k: Expr) -> Expr:
            return source[b, i, tirx.min(j, shape.width - 1) if clamped and not whole_tiles else j, k]

    packed = (cut.blocks, kh, kw, cut.k_blocks, lanes, *((word,) if word > 1 else ()))
    weight = te.placeholder(packed, arithmetic.weight, name="weight")
    rh, rw = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    ro, ri = te.reduce_axis((0, cut.k_blocks), "ko"), te.reduce_axis((0, word), "ki")

    def first_input(block: Expr) -> Expr:
        if cut.blocks_per_group == cut.blocks:
            return tirx.const(0, "int32")
        return tirx.floordiv(block, cut.blocks_per_group) * cut.group_inputs

    def product(b: Expr, i: Expr, j: Expr, block: Expr, lane: Expr) -> Expr:
        # A word of one element has no axis: a schedule would lose a loop of one step.
        channel, within = (ro * word + ri, (ri,)) if word > 1 else (ro, ())
        return arithmetic.product(
            read(b, i * sh + rh * dh, j * sw + rw * dw, first_input(block) + channel),
            weight[(block, rh, rw, ro, lane, *within)],
        )

    axes = [rh, rw, ro, *([ri] if word > 1 else [])]
    acc = te.compute(
        (n, oh, computed, cut.blocks, lanes), lambda *index: te.sum(product(*index), axis=axes), name="acc"
    )
    args = epilogue.arguments(cut.blocks, lanes, (ow, co) if matrix else (n, oh, ow, co))

    def finished(b: tirx.Var, i: tirx.Var, j: tirx.Var, block: tirx.Var, lane: tirx.Var) -> Expr:
        residual = None
        if epilogue.residual is not None:
            column = j if whole_tiles else tirx.min(j, ow - 1)
            channel = block * lanes + lane
            if not whole_blocks:
                channel = tirx.min(channel, co - 1)
            tensor = args[epilogue.residual]
            residual = tensor[column, channel] if matrix else tensor[b, i, column, channel]
        return epilogue(acc[b, i, j, block, lane], block, lane, args, residual)

    requantized = te.compute((n, oh, computed, cut.blocks, lanes), finished, name="requantize")
    if matrix:
        out = te.compute(
            (ow, co),
            lambda m, c: requantized[0, 0, m, tirx.floordiv(c, lanes), tirx.floormod(c, lanes)],
            name="out",
        )
    else:
        out = te.compute(
            (n, oh, ow, co),
            lambda b, i, j, c: requantized[b, i, j, tirx.floordiv(c, lanes), tirx.floormod(c, lanes)],
            name="out",
        )
    return Kernel([x, weight, *args, out], whole_tiles and whole_blocks, source is not x)


def depthwise_conv2d(
    shape: ConvShape,
    lanes: int,
    computed: int,
    epilogue: LastStep,
    pad_value: float,
    arithmetic: Arithmetic = INT8,
) -> Kernel:
    """A depthwise convolution; weights are ``[C/L, KH, KW, L]``."""
    n, oh, ow, c = shape.batch, shape.out_height, shape.out_width, shape.out_channels
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.strides, shape.dilation
    blocks = ceil_div(c, lanes)
    whole = computed == ow and blocks * lanes == c
    x = te.placeholder((n, shape.height, shape.width, c), arithmetic.activation, name="x")
    padded = padded_input(x, shape, (computed - 1) * sw + (kw - 1) * dw + 1, blocks * lanes, pad_value)
    weight = te.placeholder((blocks, kh, kw, lanes), arithmetic.weight, name="weight")
    rh, rw = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    acc = te.compute(
        (n, oh, computed, blocks, lanes),
        lambda b, i, j, block, lane: te.sum(
            arithmetic.product(
                padded[b, i * sh + rh * dh, j * sw + rw * dw, block * lanes + lane],
                weight[block, rh, rw, lane],
            ),
            axis=[rh, rw],
        ),
        name="acc",
    )
    args = epilogue.arguments(blocks, lanes, (n, oh, ow, c))

    def finished(b: tirx.Var, i: tirx.Var, j: tirx.Var, block: tirx.Var, lane: tirx.Var) -> Expr:
        residual = None
        if epilogue.residual is not None:
            column, channel = j, block * lanes + lane
            if not whole:
                column, channel = tirx.min(j, ow - 1), tirx.min(channel, c - 1)
            residual = args[epilogue.residual][b, i, column, channel]
        return epilogue(acc[b, i, j, block, lane], block, lane, args, residual)

    requantized = te.compute((n, oh, computed, blocks, lanes), finished, name="requantize")
    out = te.compute(
        (n, oh, ow, c),
        lambda b, i, j, k: requantized[b, i, j, tirx.floordiv(k, lanes), tirx.floormod(k, lanes)],
        name="out",
    )
    return Kernel([x, weight, *args, out], whole, padded is not x)


def depthwise_vnni(shape: ConvShape, vectors: int, lanes: int, epilogue: Epilogue) -> Kernel:
    """What the depthwise kernel with dot products computes, with its arguments: a stand-in that is never built.

    It tells the kernel's extents, arguments and last step, which is what a workload is known by; the order of lanes is
    the generator's.
    """
    n, oh, ow, c = shape.batch, shape.out_height, shape.out_width, shape.out_channels
    (kh, kw), (sh, sw), (dh, dw) = shape.kernel, shape.strides, shape.dilation
    x = te.placeholder((n, shape.height, shape.width, c), "uint8", name="x")
    weight = te.placeholder((vectors, kw, ceil_div(kh, 4), lanes, 4), "int8", name="weight")
    rh, rw = te.reduce_axis((0, kh), "kh"), te.reduce_axis((0, kw), "kw")
    acc = te.compute(
        (n, oh, ow, c),
        lambda b, i, j, k: te.sum(
            i32(x[b, i * sh + rh * dh, j * sw + rw * dw, k])
            * i32(weight[tirx.floordiv(k, lanes), rw, tirx.floordiv(rh, 4), k % lanes, rh % 4]),
            axis=[rh, rw],
        ),
        name="acc",
    )
    args = epilogue.arguments(vectors, lanes, (n, oh, ow, c))
    out = te.compute(
        (n, oh, ow, c),
        lambda b, i, j, k: epilogue(acc[b, i, j, k], tirx.floordiv(k, lanes), k % lanes, args, None),
        name="out",
    )
    return Kernel([x, weight, *args, out], whole=True, padded=False)
