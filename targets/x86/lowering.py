"""From a call of an integer operator to a scheduled kernel and its arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.ir import Constant
from tvm.s_tir import Schedule

from qcompiler.targets.base import Target
from qcompiler.targets.borders import (
    CONV2D_OF_CONCAT,
    NO_BORDER,
    QUANTIZE_TO_NHWC,
    Border,
    Borders,
    border_of,
)
from qcompiler.targets.workload import Workload
from qcompiler.targets.x86 import (
    computes,
    decisions,
    depthwise,
    elementwise,
    intrinsics,
    joined,
    layouts,
    movement,
    schedules,
)


@dataclass(frozen=True)
class Lowered:
    """A kernel for one call.

    Attributes:
        kernel: the kernel, output last: to be scheduled, or scheduled already.
        args: what it is called with: activations of the call and packed constants.
        instruction: the multiply-accumulate instruction of its inner loop, or None.
        reason: why it is not the target's own, or None.
        with_border: the kernel that writes its output inside a border, where it is not ``kernel`` with its stores moved.
    """

    kernel: Workload | tirx.PrimFunc
    args: list[relax.Expr]
    instruction: str | None = None
    reason: str | None = None
    with_border: Callable[[Border], tirx.PrimFunc] | None = None


def dims(expr: relax.Expr) -> tuple[int, ...]:
    return tuple(int(d) for d in expr.ty.shape)


def value(expr: relax.Expr) -> NDArray[Any]:
    """The array of a constant operand."""
    assert isinstance(expr, Constant), expr
    return np.asarray(expr.value.numpy())


def constant(array: NDArray[Any]) -> relax.Expr:
    return relax.const(np.ascontiguousarray(array), array.dtype.name)


def ints(attr: Sequence[Any]) -> tuple[Any, ...]:
    return tuple(int(v) for v in attr)


def requantization(attrs: Any, magnitude: float) -> computes.Requantization:
    """The operator's last step, for scaled values of at most ``magnitude``."""
    return computes.Requantization(
        int(attrs["zero_point"]), int(attrs["lo"]), int(attrs["hi"]), magnitude < 2**30
    )


def _epilogue(call: relax.Call, accumulator_bound: int) -> computes.Epilogue:
    magnitude = accumulator_bound * float(np.abs(value(call.args[3]).astype(np.float64)).max(initial=0.0))
    last = requantization(call.attrs, magnitude) if str(call.attrs["out_dtype"]) == "uint8" else None
    return computes.Epilogue(last, int(call.attrs["residual_shift"]) if len(call.args) > 4 else None)


def _channel_args(call: relax.Call, blocks: int, lanes: int) -> list[relax.Expr]:
    """Bias, multiplier, and with a residual the residual, its multiplier and its offset, padded to blocks."""
    args: list[relax.Expr] = []
    for position in range(2, len(call.args)):
        arg = call.args[position]
        args.append(arg if position == 4 else constant(layouts.pack_channels(value(arg), blocks, lanes)))
    return args


@dataclass(frozen=True)
class ConvPlan:
    """How a dense convolution is computed, whatever its weights.

    Attributes:
        rows: a row of the kernel is one run of bytes.
        cut: of the channels into blocks.
        k_steps: ``dot4`` steps of one accumulator.
        default: the schedule without tuning.
        computed: output columns, with those computed in vain.
    """

    rows: bool
    cut: layouts.ChannelBlocks
    k_steps: int
    default: decisions.ConvDecision
    computed: int

    def kernel(
        self, shape: computes.ConvShape, epilogue: computes.Epilogue, pad_value: int, *, matrix: bool
    ) -> computes.Kernel:
        return computes.conv2d(
            shape, self.cut, self.computed, epilogue, pad_value, matrix=matrix, rows=self.rows
        )


def _plan(shape: computes.ConvShape, target: Target, *, matrix: bool) -> ConvPlan:
    lanes = decisions.choose_lanes(target, shape.out_channels)
    rows = not matrix and computes.packs_rows(shape)
    kh, kw = (shape.kernel[0], 1) if rows else shape.kernel
    read = shape.in_channels * (shape.kernel[1] if rows else 1)
    cut = layouts.channel_blocks(read, shape.out_channels, shape.groups, lanes)
    k_steps = cut.k_blocks * kh * kw
    default = decisions.conv_decision(
        target,
        shape.out_width,
        cut.blocks_per_group,
        k_steps,
        weight_bytes=cut.blocks * lanes * k_steps * 4,
        input_bytes=shape.batch * shape.height * shape.width * shape.in_channels,
    )
    computed = layouts.ceil_div(shape.out_width, default.tile_width) * default.tile_width
    return ConvPlan(rows, cut, k_steps, default, computed)


def _lower_dense_conv(
    call: relax.Call,
    shape: computes.ConvShape,
    weight: NDArray[np.int8],
    pad_value: int,
    target: Target,
    matrix: bool,
) -> Lowered:
    plan = _plan(shape, target, matrix=matrix)
    cut, lanes, x = plan.cut, plan.cut.lanes, call.args[0]
    if plan.rows:  # one column, whose channels are those of all columns
        weight = weight.transpose(0, 3, 1, 2).reshape(shape.out_channels, -1, shape.kernel[0], 1)
        x = relax.op.reshape(x, (shape.batch, shape.height, shape.width * shape.in_channels))
    packed = layouts.pack_weight(weight, shape.groups, cut)
    epilogue = _epilogue(call, int(call.attrs["accumulator_bound"]))
    kernel = plan.kernel(shape, epilogue, pad_value, matrix=matrix)
    sketches = tuple(
        partial(
            schedules.schedule_conv2d,
            kernel=kernel,
            decision=decision,
            lanes=lanes,
            dot4=intrinsics.dot4(target.instruction, lanes),
            sampled_width=decisions.sampled_width(target, decision.tile_blocks),
            cycles=shape.macs // target.macs_per_cycle + prod(shape_of_output(shape)) // 4,
            vector_bytes=target.vector_bits // 8,
        )
        for decision in decisions.conv_decisions(
            target, plan.default, plan.computed, cut.blocks_per_group, plan.k_steps
        )
    )
    operator = "dense" if matrix else "conv2d"
    workload = Workload(operator, shape.describe(matrix), schedules.unscheduled(kernel), sketches)
    args = [x, constant(packed), *_channel_args(call, cut.blocks, lanes)]
    return Lowered(workload, args, target.instruction)


def shape_of_output(shape: computes.ConvShape) -> tuple[int, int, int, int]:
    return shape.batch, shape.out_height, shape.out_width, shape.out_channels


def conv_shape(call: relax.Call, data: tuple[int, ...] | None = None) -> computes.ConvShape:
    """The extents of a call of ``qc.conv2d`` in NHWC; ``data`` are those of its first operand, if it is a tuple."""
    attrs = call.attrs
    assert str(attrs["layout"]) == "NHWC"
    n, h, w, c = data or dims(call.args[0])
    o, _, kh, kw = dims(call.args[1])
    return computes.ConvShape(
        n, h, w, c, o, (kh, kw), ints(attrs["strides"]), ints(attrs["padding"]), ints(attrs["dilation"]),
        int(attrs["groups"]),
    )  # fmt: skip


def _depthwise_kernel(
    shape: computes.ConvShape, target: Target, epilogue: computes.Epilogue, pad_value: int
) -> computes.Kernel:
    tile = decisions.depthwise_tile(target, shape.out_width)
    computed = layouts.ceil_div(shape.out_width, tile) * tile
    lanes = decisions.choose_lanes(target, shape.out_channels)
    return computes.depthwise_conv2d(shape, lanes, computed, epilogue, pad_value)


def lower_conv2d(call: relax.Call, target: Target) -> Lowered:
    shape = conv_shape(call)
    pad_value = int(call.attrs["pad_value"])
    weight = value(call.args[1])
    if not shape.depthwise:
        return _lower_dense_conv(call, shape, weight, pad_value, target, matrix=False)
    epilogue = _epilogue(call, int(call.attrs["accumulator_bound"]))
    if _is_depthwise_vnni(call, shape, target):
        return _lower_depthwise_vnni(call, shape, weight, epilogue, target)
    lanes = decisions.choose_lanes(target, shape.out_channels)
    packed = layouts.pack_depthwise_weight(weight, lanes)
    kernel = _depthwise_kernel(shape, target, epilogue, pad_value)
    sketch = partial(
        schedules.schedule_depthwise,
        kernel=kernel,
        tile_width=decisions.depthwise_tile(target, shape.out_width),
        lanes=lanes,
        sampled_width=decisions.sampled_width(target, 2),
        cycles=shape.macs // 9,
        vector_bytes=target.vector_bits // 8,
    )
    workload = Workload(
        "depthwise_conv2d", shape.describe(matrix=False), schedules.unscheduled(kernel), (sketch,)
    )
    args = [call.args[0], constant(packed), *_channel_args(call, packed.shape[0], lanes)]
    return Lowered(workload, args, None, "depthwise: one product a channel and tap, no sum for a dot product")


def _is_depthwise_vnni(call: relax.Call, shape: computes.ConvShape, target: Target) -> bool:
    """Whether a convolution, computed with ``shape``, takes the depthwise kernel with dot products."""
    plain = str(call.attrs["out_dtype"]) == "uint8" and len(call.args) <= 4  # no residual
    return plain and shape.depthwise and depthwise.supports(shape, target)


def _lower_depthwise_vnni(
    call: relax.Call,
    shape: computes.ConvShape,
    weight: NDArray[np.int8],
    epilogue: computes.Epilogue,
    target: Target,
) -> Lowered:
    last = epilogue.requantization
    assert last is not None
    lanes = target.int32_lanes
    tiles = decisions.depthwise_tiles(target, shape.out_width)
    sketch = partial(
        depthwise.schedule, shape=shape, last=last, lanes=lanes, tile=tiles[0], tiles=sorted(tiles)
    )
    kernel = computes.depthwise_vnni(shape, depthwise.vectors(shape.out_channels, lanes), lanes, epilogue)
    workload = Workload(
        "depthwise_conv2d",
        shape.describe(matrix=False),
        depthwise.unscheduled(kernel),
        (sketch,),
        len(tiles) > 1,
    )
    packed = depthwise.pack_weight(weight, lanes)
    args = [constant(depthwise.pack_channels(value(a), lanes)) for a in call.args[2:]]
    return Lowered(workload, [call.args[0], constant(packed), *args], target.instruction)


def lower_conv2d_of_concat(call: relax.Call, target: Target) -> Lowered | None:
    """A depthwise 1x1 convolution of a tuple of tensors, concatenated: one kernel instead of several copies."""
    fields = list(call.args[0].fields)
    sources = [f.args[0] if isinstance(f, relax.Call) else f for f in fields]
    *pixels, _ = dims(sources[0])
    channels = sum(dims(x)[-1] for x in sources)
    shape = conv_shape(call, (*pixels, channels))
    plain = (shape.kernel, shape.strides) == ((1, 1), (1, 1)) and _is_depthwise_vnni(call, shape, target)
    looked_up = any(isinstance(f, relax.Call) for f in fields)
    if not plain or any(dims(x)[-1] % 4 for x in sources) or (looked_up and not target.has_vbmi):
        return None
    epilogue = _epilogue(call, int(call.attrs["accumulator_bound"]))
    assert epilogue.requantization is not None
    pieces = [
        joined.Piece(dims(x)[-1], isinstance(f, relax.Call)) for x, f in zip(sources, fields, strict=True)
    ]
    lanes = target.int32_lanes
    kernel = joined.depthwise_of_concat(pixels, pieces, epilogue.requantization, lanes)
    tables = [f.args[1] for f in fields if isinstance(f, relax.Call)]
    weight = constant(depthwise.pack_weight(value(call.args[1]), lanes))
    constants = [constant(depthwise.pack_channels(value(a), lanes)) for a in call.args[2:]]
    return Lowered(kernel, [*sources, *tables, weight, *constants], target.instruction)


def lower_dense(call: relax.Call, target: Target) -> Lowered:
    *batch, k = dims(call.args[0])
    o, _ = dims(call.args[1])
    shape = computes.ConvShape(1, 1, prod(batch), k, o, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    weight = value(call.args[1]).reshape(o, k, 1, 1)
    return _lower_dense_conv(call, shape, weight, 0, target, matrix=True)


def _workload(
    kernel: computes.Kernel, call: relax.Call, name: str, sketch: Callable[[Schedule], None]
) -> Workload:
    """A kernel with one schedule and no samples in it."""
    extents = "x".join(str(d) for d in dims(call.args[0]))
    return Workload(name, f"{name} {extents}", schedules.unscheduled(kernel), (sketch,), tunable=False)


def _spatial(
    kernel: computes.Kernel, call: relax.Call, args: list[relax.Expr], target: Target, *, element_bytes: int
) -> Lowered:
    shapes = [tuple(int(d) for d in t.shape) for t in kernel.tensors]
    out = shapes[-1]
    flat = all(s == out or s == (256,) for s in shapes)
    sketch = partial(
        elementwise.schedule_spatial,
        cycles=prod(out) // 2,
        vector=target.vector_bits // 8 // element_bytes,
        flat=flat and len(out) > 0,
    )
    return Lowered(_workload(kernel, call, str(call.op.name).removeprefix("qc."), sketch), args)


def lower_quantize(call: relax.Call, target: Target) -> Lowered:
    last = requantization(call.attrs, float("inf"))
    kernel = elementwise.quantize(dims(call.args[0]), float(call.attrs["inv_scale"]), last)
    return _spatial(kernel, call, [call.args[0]], target, element_bytes=4)


def lower_dequantize(call: relax.Call, target: Target) -> Lowered:
    kernel = elementwise.dequantize(
        dims(call.args[0]), float(call.attrs["scale"]), int(call.attrs["zero_point"])
    )
    return _spatial(kernel, call, [call.args[0]], target, element_bytes=4)


def lower_add(call: relax.Call, target: Target) -> Lowered:
    a = call.attrs
    kernel = elementwise.add(
        dims(call.args[0]), dims(call.args[1]), np.broadcast_shapes(dims(call.args[0]), dims(call.args[1])),
        (int(a["a_multiplier"]), int(a["b_multiplier"])), int(a["offset"]), int(a["shift"]), int(a["lo"]), int(a["hi"]),
    )  # fmt: skip
    return _spatial(kernel, call, list(call.args), target, element_bytes=4)


def lower_mul(call: relax.Call, target: Target) -> Lowered:
    a = call.attrs
    multiplier = float(a["multiplier"])
    kernel = elementwise.mul(
        dims(call.args[0]), dims(call.args[1]), np.broadcast_shapes(dims(call.args[0]), dims(call.args[1])),
        (int(a["a_zero_point"]), int(a["b_zero_point"])), multiplier, requantization(a, 255 * 255 * abs(multiplier)),
    )  # fmt: skip
    return _spatial(kernel, call, list(call.args), target, element_bytes=4)


def lower_lut(call: relax.Call, target: Target) -> Lowered:
    if target.has_vbmi:
        shape = dims(call.args[0])
        return Lowered(
            movement.table_lookup(shape),
            list(call.args),
            with_border=lambda border: movement.table_lookup(shape, border),
        )
    return _spatial(elementwise.lut(dims(call.args[0])), call, list(call.args), target, element_bytes=1)


def lower_max_pool2d(call: relax.Call, target: Target) -> Lowered:
    a = call.attrs
    kernel = elementwise.max_pool2d(
        dims(call.args[0]), ints(a["out_size"]), ints(a["pool_size"]), ints(a["strides"]), ints(a["padding"]),
        ints(a["dilation"]),
    )  # fmt: skip
    if kernel.whole:
        return _spatial(kernel, call, [call.args[0]], target, element_bytes=1)
    sketch = partial(
        elementwise.schedule_pool,
        cycles=prod(dims(call.args[0])) // 4, vector=target.vector_bits // 8, epilogue=False,
    )  # fmt: skip
    return Lowered(_workload(kernel, call, "max_pool2d", sketch), [call.args[0]])


def lower_avg_pool2d(call: relax.Call, target: Target) -> Lowered:
    a = call.attrs
    multiplier = value(call.args[1])
    window = ints(a["pool_size"])
    magnitude = 255 * prod(window) * float(np.abs(multiplier).max(initial=0.0))
    kernel = elementwise.avg_pool2d(
        dims(call.args[0]), multiplier.shape, window, ints(a["strides"]), ints(a["padding"]),
        int(a["input_zero_point"]), requantization(a, magnitude),
    )  # fmt: skip
    sketch = partial(
        elementwise.schedule_pool,
        cycles=prod(dims(call.args[0])) // 4, vector=target.int32_lanes, epilogue=True,
    )  # fmt: skip
    return Lowered(_workload(kernel, call, "avg_pool2d", sketch), [call.args[0], call.args[1]])


def lower_concat(call: relax.Call, target: Target) -> Lowered | None:
    """Concatenation of bytes along the last axis; along another one it is TVM's."""
    fields = list(call.args[0].fields)
    rank = len(dims(call))
    if str(call.ty.dtype) != "uint8" or int(call.attrs.axis) % rank != rank - 1:
        return None
    return Lowered(movement.concat_last([dims(f) for f in fields], target.vector_bits // 8), fields)


def lower_permute_dims(call: relax.Call, target: Target) -> Lowered | None:
    """The exchange of the last two axes of bytes, the first of them short; any other is TVM's."""
    shape = dims(call.args[0])
    swapped = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
    if str(call.ty.dtype) != "uint8" or call.attrs.axes is None or ints(call.attrs.axes) != swapped:
        return None
    if not 2 <= shape[-2] <= movement.INTERLEAVED or shape[-1] == 1:
        return None
    return Lowered(movement.swap_last(shape, target.vector_bits // 8 // shape[-2]), [call.args[0]])


def lower_quantize_to_nhwc(call: relax.Call, target: Target) -> Lowered:
    """``permute_dims(qc.quantize(x), [0, 2, 3, 1])`` of an NCHW input, in one kernel; ``call`` is the quantize."""
    last = requantization(call.attrs, float("inf"))
    shape, inv_scale = dims(call.args[0]), float(call.attrs["inv_scale"])
    if shape[1] <= movement.INTERLEAVED:
        kernel = partial(movement.quantize_interleaved, shape, inv_scale, last, lanes=target.int32_lanes)
        return Lowered(kernel(border=NO_BORDER), [call.args[0]], with_border=lambda b: kernel(border=b))
    transposed = elementwise.quantize_to_nhwc(shape, inv_scale, last)
    sketch = partial(
        elementwise.schedule_transpose, cycles=prod(dims(call.args[0])) // 2, lanes=target.int32_lanes
    )
    return Lowered(_workload(transposed, call, "quantize_to_nhwc", sketch), [call.args[0]])


def reads_padded(call: relax.Call, target: Target) -> bool:
    """Whether the kernel of a convolution reads a padded input as it is, without a copy of its own."""
    shape = conv_shape(call).on_padded_input()
    if _is_depthwise_vnni(call, shape, target):
        return True
    epilogue = computes.Epilogue(None, None)
    if shape.depthwise:
        return not _depthwise_kernel(shape, target, epilogue, 0).padded
    return not _plan(shape, target, matrix=False).kernel(shape, epilogue, 0, matrix=False).padded


def needs_padded(call: relax.Call, target: Target) -> bool:
    """Whether a convolution's kernel is so much better on a padded input that a copy is worth it."""
    return _is_depthwise_vnni(call, conv_shape(call).on_padded_input(), target)


def lower_pad(call: relax.Call, target: Target) -> Lowered | None:
    """Constant padding of rows and columns of an NHWC tensor of bytes; any other is TVM's."""
    border = border_of(call)
    if border is None:
        return None
    return Lowered(movement.pad(dims(call.args[0]), border, target.vector_bits // 8), [call.args[0]])


BORDERS = Borders(frozenset({"qc.conv2d", "qc.lut", QUANTIZE_TO_NHWC}), reads_padded, needs_padded)
"""What x86 does about padding."""

LOWERINGS: dict[str, Callable[[relax.Call, Target], Lowered | None]] = {
    "qc.quantize": lower_quantize,
    "qc.dequantize": lower_dequantize,
    "qc.conv2d": lower_conv2d,
    CONV2D_OF_CONCAT: lower_conv2d_of_concat,
    "qc.dense": lower_dense,
    "qc.add": lower_add,
    "qc.mul": lower_mul,
    "qc.lut": lower_lut,
    "qc.max_pool2d": lower_max_pool2d,
    "qc.avg_pool2d": lower_avg_pool2d,
    "relax.concat": lower_concat,
    "relax.nn.pad": lower_pad,
    "relax.permute_dims": lower_permute_dims,
    QUANTIZE_TO_NHWC: lower_quantize_to_nhwc,
}
"""The operators that x86 has kernels for; a lowering gives None for a call that it leaves to TVM."""
