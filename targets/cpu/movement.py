"""Kernels that move bytes between channels: concatenation, padding, shuffles, quantization into NHWC."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.borders import Border, border_fills, in_root_block, sequence
from qcompiler.targets.cpu.shapes import divisor_at_most, loop_kind
from qcompiler.targets.cpu.storage import Requantize
from qcompiler.targets.cpu.vectors import ramp
from qcompiler.targets.workload import mark_scheduled


def concat_last(shapes: Sequence[Sequence[int]], vector: int, dtype: str = "uint8") -> tirx.PrimFunc:
    """Concatenation of tensors of bytes along their last axis: runs of each input's channels, a row a task.

    Args:
        shapes: the inputs' shapes, equal but for the last axis.
        vector: bytes copied at once, at most.
        dtype: of the bytes.
    """
    outer = tuple(shapes[0][:-1])
    channels = sum(s[-1] for s in shapes)
    inputs = [tirx.decl_buffer(tuple(s), dtype, name=f"x{k}") for k, s in enumerate(shapes)]
    output = tirx.decl_buffer((*outer, channels), dtype, name="out")
    index = [tirx.Var(f"i{k}", "int32") for k in range(len(outer))]
    copies: list[tirx.Stmt] = []
    first = 0
    for source, shape in zip(inputs, shapes, strict=True):
        width = divisor_at_most(shape[-1], vector)
        step = tirx.Var("c", "int32")
        channel, target = ramp(step * width, width), ramp(step * width + first, width)
        store = tirx.BufferStore(output, tirx.BufferLoad(source, [*index, channel]), [*index, target])
        copies.append(tirx.For(step, 0, shape[-1] // width, tirx.ForKind.SERIAL, store))
        first += shape[-1]
    body = sequence(copies)
    many = loop_kind(prod(outer) * channels // 16)
    for k in reversed(range(len(outer))):
        outermost = next((j for j, extent in enumerate(outer) if extent > 1), 0)
        body = tirx.For(index[k], 0, outer[k], many if k == outermost else tirx.ForKind.SERIAL, body)
    return mark_scheduled(tirx.PrimFunc([*inputs, output], body).with_attr("tirx.noalias", True))


def pad(shape: Sequence[int], border: Border, vector: int, dtype: str = "uint8") -> tirx.PrimFunc:
    """An NHWC tensor copied inside a border, a row a task.

    Args:
        shape: of the input.
        border: what is written around it.
        vector: elements copied at once, at most.
        dtype: of the elements.
    """
    n, h, w, c = shape
    x = tirx.decl_buffer((n, h, w, c), dtype, name="x")
    outer = border.around((n, h, w, c))
    out = tirx.decl_buffer(outer, dtype, name="out")
    flat_x = tirx.decl_buffer((prod(shape),), dtype, name="flat_x", data=x.data)
    flat = tirx.decl_buffer((prod(outer),), dtype, name="flat_out", data=out.data)
    row, step = tirx.Var("row", "int32"), tirx.Var("step", "int32")
    start = border.row_start((n, h, w, c), row)
    width = divisor_at_most(w * c, vector)
    target, source = ramp(start + step * width, width), ramp(row * (w * c) + step * width, width)
    store = tirx.BufferStore(flat, tirx.BufferLoad(flat_x, [source]), [target])
    copy = tirx.For(step, 0, w * c // width, tirx.ForKind.SERIAL, store)
    views = [tirx.DeclBuffer(flat_x, data=x.data), tirx.DeclBuffer(flat, data=out.data)]
    loop = tirx.For(row, 0, n * h, loop_kind(prod(shape) // 16), copy)
    return of_one_tensor([x, out], tirx.SeqStmt([*views, *border_fills(flat, (n, h, w, c), border), loop]))


def of_one_tensor(params: list[tirx.Buffer], body: tirx.Stmt) -> tirx.PrimFunc:
    """A function of one input: the pass that finds reshapes looks at such and wants a root block."""
    function = tirx.PrimFunc(params, in_root_block(body)).with_attr("tirx.noalias", True)
    return mark_scheduled(function.with_attr("s_tir", True))


def swap_last(shape: Sequence[int], vector: int, dtype: str = "uint8") -> tirx.PrimFunc:
    """``[..., G, C]`` bytes as ``[..., C, G]``, for few G: what a channel shuffle does to a pixel.

    Args:
        shape: of the input; G is at most ``INTERLEAVED``.
        vector: bytes read at once, at most.
        dtype: of the bytes.
    """
    *outer, groups, channels = shape
    pixels = prod(outer)
    x = tirx.decl_buffer(tuple(shape), dtype, name="x")
    out = tirx.decl_buffer((*outer, channels, groups), dtype, name="out")
    flat_x = tirx.decl_buffer((prod(shape),), dtype, name="flat_x", data=x.data)
    flat = tirx.decl_buffer((prod(shape),), dtype, name="flat_out", data=out.data)
    pixel, step = tirx.Var("pixel", "int32"), tirx.Var("step", "int32")

    def channels_of(first: Expr, width: int) -> tirx.Stmt:
        """Interleaves ``width`` channels of every group, from ``first`` on."""
        base = pixel * (groups * channels)
        runs = [tirx.BufferLoad(flat_x, [ramp(base + first + g * channels, width)]) for g in range(groups)]
        order = [tirx.const(g * width + c, "int32") for c in range(width) for g in range(groups)]
        return tirx.BufferStore(
            flat, tirx.Shuffle(runs, order), [ramp(base + first * groups, width * groups)]
        )

    stores: list[tirx.Stmt] = []
    whole, rest = divmod(channels, vector)
    if whole:
        stores.append(tirx.For(step, 0, whole, tirx.ForKind.SERIAL, channels_of(step * vector, vector)))
    if rest:
        stores.append(channels_of(tirx.const(whole * vector, "int32"), rest))
    loop = tirx.For(pixel, 0, pixels, loop_kind(prod(shape) // 8), sequence(stores))
    views = [tirx.DeclBuffer(flat_x, data=x.data), tirx.DeclBuffer(flat, data=out.data)]
    return of_one_tensor([x, out], tirx.SeqStmt([*views, loop]))


INTERLEAVED = 4
"""Channels up to which quantization into NHWC interleaves vectors of columns."""


def quantize_interleaved(
    shape: Sequence[int],
    inv_scale: float,
    requantization: Requantize,
    border: Border,
    lanes: int,
    dtype: str = "uint8",
) -> tirx.PrimFunc:
    """``qc.quantize`` of an NCHW tensor of few channels, written in NHWC inside a border.

    A vector of columns of every channel is quantized, and a shuffle brings the bytes of a column together.

    Args:
        shape: of the input, NCHW, float32; at most ``INTERLEAVED`` channels.
        inv_scale: as of ``qc.quantize``.
        requantization: as of ``qc.quantize``.
        border: what is written around the output; it may be empty.
        lanes: columns of a vector.
        dtype: of the stored bytes.
    """
    n, c, h, w = shape
    inner = (n, h, w, c)
    outer = border.around(inner)
    x = tirx.decl_buffer((n, c, h, w), "float32", name="x")
    out = tirx.decl_buffer(outer, dtype, name="out")
    flat = tirx.decl_buffer((prod(outer),), dtype, name="flat_out", data=out.data)
    row, tile = tirx.Var("row", "int32"), tirx.Var("tile", "int32")
    image, i = row // h, row % h
    start = border.row_start(inner, row)

    def columns_of(first: Expr, count: int) -> tirx.Stmt:
        """Quantizes ``count`` columns from ``first`` on."""
        bytes_ = []
        for channel in range(c):
            value = tirx.BufferLoad(x, [image, channel, i, ramp(first, count)])
            scale = tirx.const(inv_scale, "float32")
            bytes_.append(requantization(value * (tirx.Broadcast(scale, count) if count > 1 else scale)))
        if c * count == 1:
            return tirx.BufferStore(flat, bytes_[0], [start + first])
        order = [tirx.const(k * count + j, "int32") for j in range(count) for k in range(c)]
        return tirx.BufferStore(flat, tirx.Shuffle(bytes_, order), [ramp(start + first * c, c * count)])

    steps: list[tirx.Stmt] = []
    if w >= lanes:
        steps.append(tirx.For(tile, 0, w // lanes, tirx.ForKind.SERIAL, columns_of(tile * lanes, lanes)))
    if w % lanes:
        steps.append(columns_of(tirx.const(w - w % lanes, "int32"), w % lanes))
    loop = tirx.For(row, 0, n * h, loop_kind(prod(shape) // 4), sequence(steps))
    body = tirx.SeqStmt([tirx.DeclBuffer(flat, data=out.data), *border_fills(flat, inner, border), loop])
    return of_one_tensor([x, out], body)
