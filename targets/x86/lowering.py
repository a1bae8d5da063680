"""From a call of an integer operator to a scheduled kernel and its arguments."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from qcompiler.targets.base import Target
from qcompiler.targets.borders import CONV2D_OF_CONCAT, QUANTIZE_TO_NHWC, Borders
from qcompiler.targets.cpu import channels, elementwise
from qcompiler.targets.cpu.lowering import (
    Lowered,
    Lowering,
    Shared,
    constant,
    conv_shape,
    dims,
    value,
)
from qcompiler.targets.cpu.shapes import ConvShape, Kernel, ceil_div, unscheduled
from qcompiler.targets.cpu.storage import UNSIGNED
from qcompiler.targets.workload import Workload
from qcompiler.targets.x86 import (
    computes,
    decisions,
    dense,
    depthwise,
    floats,
    intrinsics,
    joined,
    layouts,
    schedules,
    tables,
)
from qcompiler.targets.x86.arithmetic import INT8


def _requantization(attrs: Any, magnitude: float) -> computes.Requantization:
    """The operator's last step, for scaled values of at most ``magnitude``."""
    return computes.Requantization(
        int(attrs["zero_point"]), int(attrs["lo"]), int(attrs["hi"]), magnitude < 2**30
    )


def _epilogue(call: relax.Call, accumulator_bound: int) -> computes.Epilogue:
    magnitude = accumulator_bound * float(np.abs(value(call.args[3]).astype(np.float64)).max(initial=0.0))
    last = _requantization(call.attrs, magnitude) if str(call.attrs["out_dtype"]) == "uint8" else None
    return computes.Epilogue(last, int(call.attrs["residual_shift"]) if len(call.args) > 4 else None)


def _channel_args(call: relax.Call, blocks: int, lanes: int) -> list[relax.Expr]:
    """Bias, multiplier, and with a residual the residual, its multiplier and its offset, padded to blocks."""
    args: list[relax.Expr] = []
    for position in range(2, len(call.args)):
        arg = call.args[position]
        args.append(arg if position == 4 else constant(channels.pack_channels(value(arg), blocks, lanes)))
    return args


def _multiplier(target: Target) -> dense.Multiplier:
    return dense.Multiplier(
        INT8,
        target.instruction,
        partial(intrinsics.dot4, target.instruction),
        target.macs_per_cycle,
        decisions.accumulator_budget(target),
    )


def _lower_dense_conv(
    call: relax.Call,
    shape: ConvShape,
    weight: NDArray[np.int8],
    pad_value: int,
    target: Target,
    matrix: bool,
) -> Lowered:
    return dense.lower(
        call.args[0],
        shape,
        weight,
        pad_value,
        target,
        _multiplier(target),
        _epilogue(call, int(call.attrs["accumulator_bound"])),
        partial(_channel_args, call),
        operator="dense" if matrix else "conv2d",
        matrix=matrix,
    )


def _depthwise_kernel(
    shape: ConvShape, target: Target, epilogue: computes.Epilogue, pad_value: int
) -> Kernel:
    tile = decisions.depthwise_tile(target, shape.out_width)
    computed = ceil_div(shape.out_width, tile) * tile
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
        vector=target.vector_bits // 8,
    )
    workload = Workload("depthwise_conv2d", shape.describe(matrix=False), unscheduled(kernel), (sketch,))
    args = [call.args[0], constant(packed), *_channel_args(call, packed.shape[0], lanes)]
    return Lowered(workload, args, None, "depthwise: one product a channel and tap, no sum for a dot product")


def _is_depthwise_vnni(call: relax.Call, shape: ConvShape, target: Target) -> bool:
    """Whether a convolution, computed with ``shape``, takes the depthwise kernel with dot products."""
    plain = str(call.attrs["out_dtype"]) == "uint8" and len(call.args) <= 4  # no residual
    return plain and shape.depthwise and depthwise.supports(shape, target)


def _lower_depthwise_vnni(
    call: relax.Call,
    shape: ConvShape,
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
    width = sum(dims(x)[-1] for x in sources)
    shape = conv_shape(call, (*pixels, width))
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
    looked_in = [f.args[1] for f in fields if isinstance(f, relax.Call)]
    weight = constant(depthwise.pack_weight(value(call.args[1]), lanes))
    constants = [constant(depthwise.pack_channels(value(a), lanes)) for a in call.args[2:]]
    return Lowered(kernel, [*sources, *looked_in, weight, *constants], target.instruction)


def lower_dense(call: relax.Call, target: Target) -> Lowered:
    *batch, k = dims(call.args[0])
    o, _ = dims(call.args[1])
    shape = ConvShape(1, 1, prod(batch), k, o, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    weight = value(call.args[1]).reshape(o, k, 1, 1)
    return _lower_dense_conv(call, shape, weight, 0, target, matrix=True)


def lower_lut(call: relax.Call, target: Target) -> Lowered:
    if target.has_vbmi:
        shape = dims(call.args[0])
        return Lowered(
            tables.table_lookup(shape),
            list(call.args),
            with_border=lambda border: tables.table_lookup(shape, border),
        )
    return SHARED.spatial(elementwise.lut(dims(call.args[0])), call, list(call.args), target, element_bytes=1)


def reads_padded(call: relax.Call, target: Target) -> bool:
    """Whether the kernel of a convolution reads a padded input as it is, without a copy of its own."""
    if str(call.op.name) in floats.FLOAT_LOWERINGS:
        return floats.reads_padded(call, target)
    shape = conv_shape(call).on_padded_input()
    if _is_depthwise_vnni(call, shape, target):
        return True
    epilogue = computes.Epilogue(None, None)
    if shape.depthwise:
        return not _depthwise_kernel(shape, target, epilogue, 0).padded
    made = dense.plan(shape, target, _multiplier(target), matrix=False)
    return not made.kernel(shape, epilogue, 0, matrix=False).padded


def needs_padded(call: relax.Call, target: Target) -> bool:
    """Whether a convolution's kernel is so much better on a padded input that a copy is worth it."""
    if str(call.op.name) in floats.FLOAT_LOWERINGS:
        return False
    return _is_depthwise_vnni(call, conv_shape(call).on_padded_input(), target)


BORDERS = Borders(
    frozenset({"qc.conv2d", "qc.float_conv2d", "qc.lut", QUANTIZE_TO_NHWC}), reads_padded, needs_padded
)
"""What x86 does about padding."""

SHARED = Shared(UNSIGNED, _requantization, computes.bounded)

LOWERINGS: dict[str, Lowering] = {
    **SHARED.lowerings,
    "qc.conv2d": lower_conv2d,
    CONV2D_OF_CONCAT: lower_conv2d_of_concat,
    "qc.dense": lower_dense,
    "qc.lut": lower_lut,
    **floats.FLOAT_LOWERINGS,
}
"""The operators that x86 has kernels for; a lowering gives None for a call that it leaves to TVM."""
