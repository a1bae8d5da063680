"""Kernels of what stays in float: the integer kernels' loops with other numbers in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import inf, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax, te, tirx
from tvm.ir import Expr

from qcompiler.operators import BFLOAT16_BITS
from qcompiler.targets.base import Target
from qcompiler.targets.cpu.bfloat16 import bfloat16_bits, from_bfloat16, to_bfloat16
from qcompiler.targets.cpu.channels import pack_channels
from qcompiler.targets.cpu.lowering import Lowered, constant, conv_shape, dims, value
from qcompiler.targets.cpu.shapes import ConvShape, ceil_div, unscheduled
from qcompiler.targets.workload import Workload
from qcompiler.targets.x86 import computes, decisions, dense, layouts, schedules
from qcompiler.targets.x86.arithmetic import BFLOAT16, Arithmetic, float_arithmetic
from qcompiler.targets.x86.float_intrinsics import imported, multiply_add

INT8_MAX = 127
"""Magnitude of the largest weight of an output channel, where weights are int8."""


@dataclass(frozen=True)
class Epilogue:
    """``clip(accumulator * scale + bias + residual, lo, hi)``.

    Attributes:
        lo: lower bound; may be infinite.
        hi: upper bound; may be infinite.
        residual_dtype: of the residual, or None without one; ``uint16`` holds the bits of a bfloat16.
        dtype: of the result, as ``residual_dtype``.
        scaled: there is a scale, one an output channel: the weights are integers.
    """

    lo: float
    hi: float
    residual_dtype: str | None
    dtype: str
    scaled: bool = False

    @property
    def residual(self) -> int | None:
        return None if self.residual_dtype is None else 1 + self.scaled

    def arguments(self, blocks: int, lanes: int, output: Sequence[int]) -> list[te.Tensor]:
        args = [te.placeholder((blocks, lanes), "float32", name="bias")]
        if self.scaled:
            args.append(te.placeholder((blocks, lanes), "float32", name="scale"))
        if self.residual_dtype is not None:
            args.append(te.placeholder(tuple(output), self.residual_dtype, name="residual"))
        return args

    def __call__(
        self, accumulator: Expr, block: Expr, lane: Expr, args: Sequence[te.Tensor], residual: Expr | None
    ) -> Expr:
        result = accumulator * args[1][block, lane] if self.scaled else accumulator
        result = result + args[0][block, lane]
        if residual is not None:
            result = result + (from_bfloat16(residual) if self.residual_dtype == BFLOAT16_BITS else residual)
        if self.lo > -inf:
            result = tirx.max(result, tirx.const(self.lo, "float32"))
        if self.hi < inf:
            result = tirx.min(result, tirx.const(self.hi, "float32"))
        return to_bfloat16(result) if self.dtype == BFLOAT16_BITS else result


def _epilogue(call: relax.Call, *, scaled: bool = False) -> Epilogue:
    residual = str(call.args[3].ty.dtype) if len(call.args) > 3 else None
    a = call.attrs
    return Epilogue(float(a["lo"]), float(a["hi"]), residual, str(a["out_dtype"]), scaled)


def _operands(
    call: relax.Call, scale: NDArray[np.float32] | None, blocks: int, lanes: int
) -> list[relax.Expr]:
    channels = [value(call.args[2]), *([] if scale is None else [scale])]
    return [*(constant(pack_channels(c, blocks, lanes)) for c in channels), *call.args[3:]]


def _arithmetic(call: relax.Call, target: Target) -> Arithmetic:
    arithmetic = float_arithmetic(target, str(call.attrs["precision"]))
    assert arithmetic.activation == str(call.args[0].ty.dtype), (
        "an activation is not stored as its layer reads it"
    )
    return arithmetic


def _multiplier(arithmetic: Arithmetic, target: Target) -> dense.Multiplier:
    # Sixteen registers hold the sums of six columns by two blocks, two vectors of weights and one of activations.
    accumulators = decisions.accumulator_budget(target) if target.vector_registers >= 32 else 12
    intrinsic = partial(multiply_add, arithmetic)
    if arithmetic is BFLOAT16:
        return dense.Multiplier(
            arithmetic, "vdpbf16ps", intrinsic, target.bf16_macs_per_cycle, accumulators, imported
        )
    return dense.Multiplier(arithmetic, "vfmadd231ps", intrinsic, target.float_macs_per_cycle, accumulators)


def _rounded(weight: NDArray[np.float32], dtype: str) -> tuple[NDArray[Any], NDArray[np.float32] | None]:
    """Weights in a kernel's format, and for integers the scale of each output channel."""
    if dtype == "int8":
        largest = np.abs(weight.reshape(weight.shape[0], -1)).max(1)
        scale = np.where(largest > 0, largest / np.float32(INT8_MAX), 1).astype(np.float32)
        return np.rint(weight / scale.reshape(-1, *(1,) * (weight.ndim - 1))).astype(np.int8), scale
    return (bfloat16_bits(weight) if dtype == BFLOAT16_BITS else weight.astype(dtype)), None


def _lower_dense(call: relax.Call, shape: ConvShape, weight: NDArray[np.float32], target: Target, *, matrix: bool) -> Lowered:  # fmt: skip
    arithmetic = _arithmetic(call, target)
    packed, scale = _rounded(weight, arithmetic.weight)
    return dense.lower(
        call.args[0],
        shape,
        packed,
        0.0 if arithmetic.activation == "float32" else 0,
        target,
        _multiplier(arithmetic, target),
        _epilogue(call, scaled=scale is not None),
        partial(_operands, call, scale),
        operator="float_dense" if matrix else "float_conv2d",
        matrix=matrix,
        tunable=False,  # candidates of tuning are compared in every bit, which sums in another order do not keep
    )


def lower_conv2d(call: relax.Call, target: Target) -> Lowered:
    shape, weight = conv_shape(call), value(call.args[1])
    if not shape.depthwise:
        return _lower_dense(call, shape, weight, target, matrix=False)
    return _lower_depthwise(call, shape, weight, target)


def lower_dense(call: relax.Call, target: Target) -> Lowered:
    *batch, k = dims(call.args[0])
    o, _ = dims(call.args[1])
    shape = ConvShape(1, 1, prod(batch), k, o, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    return _lower_dense(call, shape, value(call.args[1]).reshape(o, k, 1, 1), target, matrix=True)


def _lower_depthwise(call: relax.Call, shape: ConvShape, weight: NDArray[np.float32], target: Target) -> Lowered:  # fmt: skip
    """One fused multiply-add a tap and vector of channels, whatever the weights' precision: they are few."""
    arithmetic = _arithmetic(call, target)
    tile = decisions.depthwise_tile(target, shape.out_width)
    computed = ceil_div(shape.out_width, tile) * tile
    lanes = decisions.choose_lanes(target, shape.out_channels)
    weight, scale = _rounded(weight, arithmetic.weight)
    packed = layouts.pack_depthwise_weight(weight, lanes)
    pad = 0.0 if arithmetic.activation == "float32" else 0
    kernel = computes.depthwise_conv2d(
        shape, lanes, computed, _epilogue(call, scaled=scale is not None), pad, arithmetic
    )
    sketch = partial(
        schedules.schedule_depthwise,
        kernel=kernel,
        tile_width=tile,
        lanes=lanes,
        sampled_width=decisions.sampled_width(target, 2),
        cycles=shape.macs // lanes,
        vector=target.int32_lanes,
    )
    workload = Workload(
        "float_depthwise", shape.describe(matrix=False), unscheduled(kernel), (sketch,), tunable=False
    )
    args = [call.args[0], constant(packed), *_operands(call, scale, packed.shape[0], lanes)]
    return Lowered(workload, args, None, "depthwise: one product a channel and tap", str(arithmetic))


def reads_padded(call: relax.Call, target: Target) -> bool:
    """Whether the kernel of a convolution reads a padded input as it is, without a copy of its own."""
    shape = conv_shape(call).on_padded_input()
    arithmetic = _arithmetic(call, target)
    if shape.depthwise:
        tile = decisions.depthwise_tile(target, shape.out_width)
        lanes = decisions.choose_lanes(target, shape.out_channels)
        return shape.out_width % tile == 0 and shape.out_channels % lanes == 0
    made = dense.plan(shape, target, _multiplier(arithmetic, target), matrix=False)
    plain = Epilogue(-inf, inf, None, "float32")
    return not made.kernel(shape, plain, 0, matrix=False).padded


FLOAT_LOWERINGS = {"qc.float_conv2d": lower_conv2d, "qc.float_dense": lower_dense}
