"""Kernels of x86 that move bytes between channels: concatenation, tables, quantization into NHWC."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.borders import NO_BORDER, Border, border_fills, in_root_block, sequence
from qcompiler.targets.workload import mark_scheduled
from qcompiler.targets.x86.computes import Requantization
from qcompiler.targets.x86.decisions import divisor_at_most
from qcompiler.targets.x86.schedules import loop_kind


def concat_last(shapes: Sequence[Sequence[int]], vector: int) -> tirx.PrimFunc:
    """Concatenation of uint8 tensors along their last axis: runs of each input's channels, a row a task.

    Args:
        shapes: the inputs' shapes, equal but for the last axis.
        vector: bytes copied at once, at most.
    """
    outer = tuple(shapes[0][:-1])
    channels = sum(s[-1] for s in shapes)
    inputs = [tirx.decl_buffer(tuple(s), "uint8", name=f"x{k}") for k, s in enumerate(shapes)]
    output = tirx.decl_buffer((*outer, channels), "uint8", name="out")
    index = [tirx.Var(f"i{k}", "int32") for k in range(len(outer))]
    copies: list[tirx.Stmt] = []
    first = 0
    for source, shape in zip(inputs, shapes, strict=True):
        width = divisor_at_most(shape[-1], vector)
        step = tirx.Var("c", "int32")
        channel, target = _ramp(step * width, width), _ramp(step * width + first, width)
        store = tirx.BufferStore(output, tirx.BufferLoad(source, [*index, channel]), [*index, target])
        copies.append(tirx.For(step, 0, shape[-1] // width, tirx.ForKind.SERIAL, store))
        first += shape[-1]
    body = sequence(copies)
    many = loop_kind(prod(outer) * channels // 16)
    for k in reversed(range(len(outer))):
        outermost = next((j for j, extent in enumerate(outer) if extent > 1), 0)
        body = tirx.For(index[k], 0, outer[k], many if k == outermost else tirx.ForKind.SERIAL, body)
    return mark_scheduled(tirx.PrimFunc([*inputs, output], body).with_attr("tirx.noalias", True))


def pad(shape: Sequence[int], border: Border, vector: int) -> tirx.PrimFunc:
    """An NHWC tensor of bytes copied inside a border, a row a task.

    Args:
        shape: of the input.
        border: what is written around it.
        vector: bytes copied at once, at most.
    """
    n, h, w, c = shape
    x = tirx.decl_buffer((n, h, w, c), "uint8", name="x")
    outer = border.around((n, h, w, c))
    out = tirx.decl_buffer(outer, "uint8", name="out")
    flat_x = tirx.decl_buffer((prod(shape),), "uint8", name="flat_x", data=x.data)
    flat = tirx.decl_buffer((prod(outer),), "uint8", name="flat_out", data=out.data)
    row, step = tirx.Var("row", "int32"), tirx.Var("step", "int32")
    start = border.row_start((n, h, w, c), row)
    width = divisor_at_most(w * c, vector)
    target, source = _ramp(start + step * width, width), _ramp(row * (w * c) + step * width, width)
    store = tirx.BufferStore(flat, tirx.BufferLoad(flat_x, [source]), [target])
    copy = tirx.For(step, 0, w * c // width, tirx.ForKind.SERIAL, store)
    views = [tirx.DeclBuffer(flat_x, data=x.data), tirx.DeclBuffer(flat, data=out.data)]
    loop = tirx.For(row, 0, n * h, loop_kind(prod(shape) // 16), copy)
    return _of_one_tensor([x, out], tirx.SeqStmt([*views, *border_fills(flat, (n, h, w, c), border), loop]))


def _of_one_tensor(params: list[tirx.Buffer], body: tirx.Stmt) -> tirx.PrimFunc:
    """A function of one input: the pass that finds reshapes looks at such and wants a root block."""
    function = tirx.PrimFunc(params, in_root_block(body)).with_attr("tirx.noalias", True)
    return mark_scheduled(function.with_attr("s_tir", True))


def swap_last(shape: Sequence[int], vector: int) -> tirx.PrimFunc:
    """``[..., G, C]`` bytes as ``[..., C, G]``, for few G: what a channel shuffle does to a pixel.

    Args:
        shape: of the input; G is at most ``INTERLEAVED``.
        vector: bytes read at once, at most.
    """
    *outer, groups, channels = shape
    pixels = prod(outer)
    x = tirx.decl_buffer(tuple(shape), "uint8", name="x")
    out = tirx.decl_buffer((*outer, channels, groups), "uint8", name="out")
    flat_x = tirx.decl_buffer((prod(shape),), "uint8", name="flat_x", data=x.data)
    flat = tirx.decl_buffer((prod(shape),), "uint8", name="flat_out", data=out.data)
    pixel, step = tirx.Var("pixel", "int32"), tirx.Var("step", "int32")

    def channels_of(first: Expr, width: int) -> tirx.Stmt:
        """Interleaves ``width`` channels of every group, from ``first`` on."""
        base = pixel * (groups * channels)
        runs = [tirx.BufferLoad(flat_x, [_ramp(base + first + g * channels, width)]) for g in range(groups)]
        order = [tirx.const(g * width + c, "int32") for c in range(width) for g in range(groups)]
        return tirx.BufferStore(
            flat, tirx.Shuffle(runs, order), [_ramp(base + first * groups, width * groups)]
        )

    stores: list[tirx.Stmt] = []
    whole, rest = divmod(channels, vector)
    if whole:
        stores.append(tirx.For(step, 0, whole, tirx.ForKind.SERIAL, channels_of(step * vector, vector)))
    if rest:
        stores.append(channels_of(tirx.const(whole * vector, "int32"), rest))
    loop = tirx.For(pixel, 0, pixels, loop_kind(prod(shape) // 8), sequence(stores))
    views = [tirx.DeclBuffer(flat_x, data=x.data), tirx.DeclBuffer(flat, data=out.data)]
    return _of_one_tensor([x, out], tirx.SeqStmt([*views, loop]))


def _ramp(start: Expr, count: int) -> Expr:
    return tirx.Ramp(start, 1, count) if count > 1 else start


LOOKUP = 64
"""Bytes that one pair of byte permutations over two registers looks up."""


def looked_up(table: tirx.Buffer, index: Expr) -> Expr:
    """``LOOKUP`` bytes of a table of 256, by as many indices: two ``vpermi2b``, of which the top bit picks one."""
    quarters = [tirx.BufferLoad(table, [tirx.Ramp(q * LOOKUP, 1, LOOKUP)]) for q in range(4)]
    permute = "llvm.x86.avx512.vpermi2var.qi.512"
    low, high = (
        tirx.call_llvm_pure_intrin(f"uint8x{LOOKUP}", permute, quarters[k], index, quarters[k + 1])
        for k in (0, 2)
    )
    return tirx.Select(index >= tirx.Broadcast(tirx.const(128, "uint8"), LOOKUP), high, low)


def table_lookup(shape: Sequence[int], border: Border = NO_BORDER) -> tirx.PrimFunc:
    """``qc.lut`` by ``vpermi2b``: the table is in four registers; the top bit of an index picks a pair of them.

    Args:
        shape: of the input, uint8. The table has 256 bytes.
        border: what is written around an NHWC output.
    """
    total = prod(shape)
    x = tirx.decl_buffer(tuple(shape), "uint8", name="x")
    table = tirx.decl_buffer((256,), "uint8", name="table")
    if border == NO_BORDER:  # one row of all
        rows, length, outer = 1, total, tuple(shape)
    else:
        n, h, w, c = shape
        rows, length, outer = n * h, w * c, border.around((n, h, w, c))
    out = tirx.decl_buffer(outer, "uint8", name="out")
    flat_x = tirx.decl_buffer((total,), "uint8", name="flat_x", data=x.data)
    flat_out = tirx.decl_buffer((prod(outer),), "uint8", name="flat_out", data=out.data)
    chunks = length // LOOKUP
    per_task = divisor_at_most(chunks, 64) if chunks else 1
    row, task, step, rest = (tirx.Var(name, "int32") for name in ("row", "task", "step", "rest"))
    source, target = row * length, row * length
    if border != NO_BORDER:
        target = border.row_start((n, h, w, c), row)
    many = loop_kind(total // 16)
    stores: list[tirx.Stmt] = []
    if chunks:
        offset = (task * per_task + step) * LOOKUP
        index = tirx.BufferLoad(flat_x, [_ramp(source + offset, LOOKUP)])
        store = tirx.BufferStore(flat_out, looked_up(table, index), [_ramp(target + offset, LOOKUP)])
        inner = tirx.For(step, 0, per_task, tirx.ForKind.SERIAL, store)
        kind = many if rows == 1 else tirx.ForKind.SERIAL
        stores.append(tirx.For(task, 0, chunks // per_task, kind, inner))
    if length % LOOKUP:
        position = rest + chunks * LOOKUP
        value = tirx.BufferLoad(table, [tirx.BufferLoad(flat_x, [source + position]).astype("int32")])
        store = tirx.BufferStore(flat_out, value, [target + position])
        stores.append(tirx.For(rest, 0, length % LOOKUP, tirx.ForKind.SERIAL, store))
    body = tirx.For(row, 0, rows, many if rows > 1 else tirx.ForKind.SERIAL, sequence(stores))
    views = [tirx.DeclBuffer(flat_x, data=x.data), tirx.DeclBuffer(flat_out, data=out.data)]
    fills = border_fills(flat_out, tuple(shape), border) if border != NO_BORDER else []
    whole = tirx.SeqStmt([*views, *fills, body])
    return mark_scheduled(tirx.PrimFunc([x, table, out], whole).with_attr("tirx.noalias", True))


INTERLEAVED = 4
"""Channels up to which quantization into NHWC interleaves vectors of columns."""


def quantize_interleaved(
    shape: Sequence[int], inv_scale: float, requantization: Requantization, border: Border, lanes: int
) -> tirx.PrimFunc:
    """``qc.quantize`` of an NCHW tensor of few channels, written in NHWC inside a border.

    A vector of columns of every channel is quantized, and a shuffle brings the bytes of a column together.

    Args:
        shape: of the input, NCHW, float32; at most ``INTERLEAVED`` channels.
        inv_scale: as of ``qc.quantize``.
        requantization: as of ``qc.quantize``.
        border: what is written around the output; it may be empty.
        lanes: columns of a vector.
    """
    n, c, h, w = shape
    inner = (n, h, w, c)
    outer = border.around(inner)
    x = tirx.decl_buffer((n, c, h, w), "float32", name="x")
    out = tirx.decl_buffer(outer, "uint8", name="out")
    flat = tirx.decl_buffer((prod(outer),), "uint8", name="flat_out", data=out.data)
    row, tile = tirx.Var("row", "int32"), tirx.Var("tile", "int32")
    image, i = row // h, row % h
    start = border.row_start(inner, row)

    def columns_of(first: Expr, count: int) -> tirx.Stmt:
        """Quantizes ``count`` columns from ``first`` on."""
        bytes_ = []
        for channel in range(c):
            value = tirx.BufferLoad(x, [image, channel, i, _ramp(first, count)])
            scale = tirx.const(inv_scale, "float32")
            bytes_.append(requantization(value * (tirx.Broadcast(scale, count) if count > 1 else scale)))
        if c * count == 1:
            return tirx.BufferStore(flat, bytes_[0], [start + first])
        order = [tirx.const(k * count + j, "int32") for j in range(count) for k in range(c)]
        return tirx.BufferStore(flat, tirx.Shuffle(bytes_, order), [_ramp(start + first * c, c * count)])

    steps: list[tirx.Stmt] = []
    if w >= lanes:
        steps.append(tirx.For(tile, 0, w // lanes, tirx.ForKind.SERIAL, columns_of(tile * lanes, lanes)))
    if w % lanes:
        steps.append(columns_of(tirx.const(w - w % lanes, "int32"), w % lanes))
    loop = tirx.For(row, 0, n * h, loop_kind(prod(shape) // 4), sequence(steps))
    body = tirx.SeqStmt([tirx.DeclBuffer(flat, data=out.data), *border_fills(flat, inner, border), loop])
    return _of_one_tensor([x, out], body)
