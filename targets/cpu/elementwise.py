"""Kernels that move or map bytes: quantize, dequantize, add, mul, tables, pooling.

All are spatial: a row of the output a task, the innermost axis in vectors. Windows of pooling are unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

from tvm import te, tirx
from tvm.ir import Expr
from tvm.s_tir import Schedule

from qcompiler.targets.cpu.shapes import PARALLEL_MINIMUM, Kernel, divisor_at_most
from qcompiler.targets.cpu.storage import Requantize, Storage

UNROLLED_WINDOW = 64
"""Window positions up to which a pooling window is one expression; larger ones are loops."""


def i32(value: Expr) -> Expr:
    return value.astype("int32")


def f32(value: float) -> Expr:
    return tirx.const(value, "float32")


def spatial(tensors: list[te.Tensor]) -> Kernel:
    return Kernel(tensors, whole=True, padded=False)


def quantize(shape: Sequence[int], inv_scale: float, requantization: Requantize) -> Kernel:
    """``qc.quantize``; the scaled input is bounded before it is rounded, whatever its magnitude."""
    x = te.placeholder(tuple(shape), "float32", name="x")
    out = te.compute(tuple(shape), lambda *i: requantization(x[i] * f32(inv_scale)), name="out")
    return spatial([x, out])


def quantize_to_nhwc(shape: Sequence[int], inv_scale: float, requantization: Requantize) -> Kernel:
    """``qc.quantize`` of an NCHW tensor, written in NHWC."""
    n, c, h, w = shape
    x = te.placeholder((n, c, h, w), "float32", name="x")
    out = te.compute(
        (n, h, w, c), lambda b, i, j, k: requantization(x[b, k, i, j] * f32(inv_scale)), name="out"
    )
    return spatial([x, out])


def dequantize(shape: Sequence[int], scale: float, zero_point: int, storage: Storage) -> Kernel:
    """``qc.dequantize``."""
    x = te.placeholder(tuple(shape), storage.dtype, name="x")
    zero = tirx.const(zero_point - storage.offset, "int32")
    out = te.compute(
        tuple(shape),
        lambda *i: (i32(x[i]) - zero).astype("float32") * f32(scale),
        name="out",
    )
    return spatial([x, out])


def _broadcast(tensor: te.Tensor, index: Sequence[Expr]) -> Expr:
    """Element of ``tensor`` at ``index`` of a shape it broadcasts to."""
    offset = len(index) - len(tensor.shape)
    return tensor[tuple(0 if int(d) == 1 else index[offset + k] for k, d in enumerate(tensor.shape))]


def add(
    a_shape: Sequence[int], b_shape: Sequence[int], out_shape: Sequence[int],
    multipliers: tuple[int, int], offset: int, shift: int, bounded: Callable[[Expr], Expr], storage: Storage,
) -> Kernel:  # fmt: skip
    """``qc.add``; ``bounded`` puts bounds to an int32 and stores it."""
    offset += storage.offset * sum(
        multipliers
    )  # the value for two stored zeros, which fits in int32 as all do
    a = te.placeholder(tuple(a_shape), storage.dtype, name="a")
    b = te.placeholder(tuple(b_shape), storage.dtype, name="b")

    def element(*index: tirx.Var) -> Expr:
        total = (
            i32(_broadcast(a, index)) * multipliers[0] + i32(_broadcast(b, index)) * multipliers[1] + offset
        )
        return bounded(total >> shift if shift else total)

    return spatial([a, b, te.compute(tuple(out_shape), element, name="out")])


def mul(
    a_shape: Sequence[int], b_shape: Sequence[int], out_shape: Sequence[int],
    zero_points: tuple[int, int], multiplier: float, requantization: Requantize, storage: Storage,
) -> Kernel:  # fmt: skip
    """``qc.mul``."""
    a_zero, b_zero = (z - storage.offset for z in zero_points)
    a = te.placeholder(tuple(a_shape), storage.dtype, name="a")
    b = te.placeholder(tuple(b_shape), storage.dtype, name="b")

    def element(*index: tirx.Var) -> Expr:
        product = (i32(_broadcast(a, index)) - a_zero) * (i32(_broadcast(b, index)) - b_zero)
        return requantization(product.astype("float32") * f32(multiplier))

    return spatial([a, b, te.compute(tuple(out_shape), element, name="out")])


def lut(shape: Sequence[int]) -> Kernel:
    """``qc.lut``."""
    x = te.placeholder(tuple(shape), "uint8", name="x")
    table = te.placeholder((256,), "uint8", name="table")
    return spatial([x, table, te.compute(tuple(shape), lambda *i: table[i32(x[i])], name="out")])


def _window(
    x: te.Tensor, index: Sequence[Expr], place: tuple[int, int], strides: tuple[int, int],
    padding: tuple[int, int, int, int], dilation: tuple[int, int], outside: Expr, convert: Callable[[Expr], Expr],
    covered: tuple[int, int],
) -> Expr:  # fmt: skip
    """One position of a window over NHWC ``x``; ``outside`` where it falls off x.

    ``covered`` is the extent of the output: positions that no output can push off x are read without a test.
    """
    b, i, j, c = index
    h, w = int(x.shape[1]), int(x.shape[2])
    conditions: list[Expr] = []
    coordinates: list[Expr] = []
    for axis, (out, size) in enumerate(((i, h), (j, w))):
        start = place[axis] * dilation[axis] - padding[axis]
        position = out * strides[axis] + start
        if start < 0:
            conditions.append(position >= 0)
        if (covered[axis] - 1) * strides[axis] + start >= size:
            conditions.append(position < size)
        coordinates.append(position)
    value = convert(x[b, coordinates[0], coordinates[1], c])
    return tirx.if_then_else(tirx.all(*conditions), value, outside) if conditions else value


def max_pool2d(
    shape: Sequence[int], out_size: tuple[int, int], pool_size: tuple[int, int], strides: tuple[int, int],
    padding: tuple[int, int, int, int], dilation: tuple[int, int], storage: Storage,
) -> Kernel:  # fmt: skip
    """``qc.max_pool2d`` in NHWC; the row maximum of a window is taken before the column maximum."""
    x = te.placeholder(tuple(shape), storage.dtype, name="x")
    n, _, _, c = shape
    zero = storage.element(0)

    def element(*index: tirx.Var) -> Expr:
        taps = [
            _window(x, index, (p, q), strides, padding, dilation, zero, lambda v: v, out_size)
            for p in range(pool_size[0])
            for q in range(pool_size[1])
        ]
        return reduce(tirx.max, taps)

    if pool_size[0] * pool_size[1] <= UNROLLED_WINDOW:
        return spatial([x, te.compute((n, *out_size, c), element, name="out")])
    rp, rq = te.reduce_axis((0, pool_size[0]), "rp"), te.reduce_axis((0, pool_size[1]), "rq")
    out = te.compute(
        (n, *out_size, c),
        lambda b, i, j, k: te.max(
            _looped(x, (b, i, j, k), rp, rq, strides, padding, dilation, zero, out_size, pool_size),
            axis=[rp, rq],
        ),
        name="out",
    )
    return Kernel([x, out], whole=False, padded=False)


def _looped(
    x: te.Tensor, index: Sequence[Expr], rp: Expr, rq: Expr, strides: tuple[int, int],
    padding: tuple[int, int, int, int], dilation: tuple[int, int], outside: Expr,
    covered: tuple[int, int], window: tuple[int, int],
) -> Expr:  # fmt: skip
    """A position of a window given by reduction axes; ``covered`` and ``window`` are the extents of output and window.

    Without padding, the last windows can still reach past the end, where the output's size was rounded up.
    """
    b, i, j, c = index
    conditions: list[Expr] = []
    coordinates: list[Expr] = []
    for axis, (out, tap) in enumerate(((i, rp), (j, rq))):
        size = int(x.shape[1 + axis])
        position = out * strides[axis] + tap * dilation[axis] - padding[axis]
        if padding[axis]:
            conditions.append(position >= 0)
        if (covered[axis] - 1) * strides[axis] + (window[axis] - 1) * dilation[axis] - padding[axis] >= size:
            conditions.append(position < size)
        coordinates.append(position)
    value = x[b, coordinates[0], coordinates[1], c]
    return tirx.if_then_else(tirx.all(*conditions), value, outside) if conditions else value


def avg_pool2d(
    shape: Sequence[int], out_size: tuple[int, int], pool_size: tuple[int, int], strides: tuple[int, int],
    padding: tuple[int, int, int, int], input_zero_point: int, requantization: Requantize, storage: Storage,
) -> Kernel:  # fmt: skip
    """``qc.avg_pool2d`` in NHWC."""
    x = te.placeholder(tuple(shape), storage.dtype, name="x")
    n, _, _, c = shape
    multiplier = te.placeholder(out_size, "float32", name="multiplier")
    zero_point = tirx.const(input_zero_point - storage.offset, "int32")
    rp, rq = te.reduce_axis((0, pool_size[0]), "rp"), te.reduce_axis((0, pool_size[1]), "rq")
    # Positions off x stand for zero, which is stored as the zero point.
    total = te.compute(
        (n, *out_size, c),
        lambda b, i, j, k: te.sum(
            i32(
                _looped(
                    x,
                    (b, i, j, k),
                    rp,
                    rq,
                    strides,
                    padding,
                    (1, 1),
                    storage.element(input_zero_point),
                    out_size,
                    pool_size,
                )
            ),
            axis=[rp, rq],
        ),
        name="acc",
    )
    offset = zero_point * (pool_size[0] * pool_size[1])
    out = te.compute(
        (n, *out_size, c),
        lambda b, i, j, k: requantization((total[b, i, j, k] - offset).astype("float32") * multiplier[i, j]),
        name="out",
    )
    return Kernel([x, multiplier, out], whole=False, padded=False)


def schedule_spatial(sch: Schedule, cycles: int, vector: int, *, flat: bool) -> None:
    """Outer axes are tasks, the innermost is cut into vectors.

    Args:
        sch: schedule of a kernel with the one block ``out``.
        cycles: what the kernel takes on one core, about; small ones are not worth a second thread.
        vector: elements of a vector.
        flat: every operand has the output's shape, so that all axes are one.
    """
    loops = sch.get_loops(sch.get_sblock("out"))
    if flat:
        total = 1
        for loop in loops:
            total *= int(sch.get(loop).extent)
        fused = sch.fuse(*loops) if len(loops) > 1 else loops[0]
        if total % vector == 0:
            chunk = vector * divisor_at_most(total // vector, 64)
            outer, inner = sch.split(fused, [None, chunk])
            _, lanes = sch.split(inner, [None, vector])
            sch.vectorize(lanes)
        else:
            outer, _ = sch.split(fused, [None, min(64 * vector, total)])
    else:
        *rest, last = loops
        extent = int(sch.get(last).extent)
        _, lanes = sch.split(last, [None, divisor_at_most(extent, vector)])
        sch.vectorize(lanes)
        outer = sch.fuse(*rest[: max(1, len(rest) - 1)]) if len(rest) > 1 else (rest[0] if rest else None)
    if outer is not None and cycles >= PARALLEL_MINIMUM:
        sch.parallel(outer)


def schedule_transpose(sch: Schedule, cycles: int, lanes: int) -> None:
    """Reads vectors of columns and writes them channel by channel."""
    b, i, j, k = sch.get_loops(sch.get_sblock("out"))
    columns = int(sch.get(j).extent)
    width = divisor_at_most(columns, lanes)
    j0, vector = sch.split(j, [None, width])
    sch.reorder(b, i, j0, k, vector)
    if width > 1:
        sch.vectorize(vector)
    outer = sch.fuse(b, i)
    if cycles >= PARALLEL_MINIMUM:
        sch.parallel(outer)


def schedule_pool(sch: Schedule, cycles: int, vector: int, *, epilogue: bool) -> None:
    """A window in loops: the sums of one vector of channels stay in registers."""
    out = sch.get_sblock("out")
    parallel = cycles >= PARALLEL_MINIMUM
    # Loops are marked before the reduction is decomposed; after that a schedule refuses it.
    if epilogue:
        n, i, j, c = sch.get_loops(out)
        extent = int(sch.get(c).extent)
        width = divisor_at_most(extent, vector)
        c0, lanes = sch.split(c, [None, width])
        outer = sch.fuse(n, i, j, c0)
        if parallel:
            sch.parallel(outer)
        acc = sch.get_sblock("acc")
        sch.compute_at(acc, outer, preserve_unit_loops=True)
        b, y, x, k, rp, rq = sch.get_loops(acc)[-6:]
        sch.reorder(rp, rq, b, y, x, k)
        sch.vectorize(k)
        sch.vectorize(lanes)
        sch.decompose_reduction(acc, rp)
    else:
        n, i, j, c, rp, rq = sch.get_loops(out)
        c0, lanes = sch.split(c, [None, divisor_at_most(int(sch.get(c).extent), vector)])
        sch.reorder(n, i, j, c0, rp, rq, lanes)
        outer = sch.fuse(n, i, j, c0)
        if parallel:
            sch.parallel(outer)
        sch.vectorize(lanes)
        sch.decompose_reduction(out, rp)
