"""From a call of an integer operator to a kernel and its arguments."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from qcompiler.targets.base import GpuTarget, Target
from qcompiler.targets.borders import QUANTIZE_TO_NHWC, Borders
from qcompiler.targets.cpu import elementwise
from qcompiler.targets.cpu.lowering import Lowered, Lowering, Shared, constant, conv_shape, dims, value
from qcompiler.targets.cpu.shapes import ConvShape, ceil_div
from qcompiler.targets.cpu.storage import UNSIGNED
from qcompiler.targets.cuda import decisions, depthwise, direct, layouts
from qcompiler.targets.cuda.finish import Epilogue, Requantization, bounded
from qcompiler.targets.cuda.schedules import GpuSchedules
from qcompiler.targets.cuda.sketches import Problem, gemm_workload


def _requantization(attrs: Any, magnitude: float) -> Requantization:
    """The operator's last step; it saturates, whatever the magnitude."""
    return Requantization(int(attrs["zero_point"]), int(attrs["lo"]), int(attrs["hi"]))


def _epilogue(call: relax.Call) -> Epilogue:
    real = str(call.attrs["out_dtype"]) == "float32"
    shift = int(call.attrs["residual_shift"]) if len(call.args) > 4 else None
    return Epilogue(None if real else _requantization(call.attrs, 0.0), shift)


def _arguments(call: relax.Call, weight: NDArray[np.int32], groups: int, padded: int) -> list[relax.Expr]:
    """The kernel's: activations, packed weights, bias, multiplier, and what belongs to a residual."""
    constants = [
        call.args[k] if k == 4 else constant(layouts.pad_groups(value(call.args[k]), groups, padded))
        for k in range(2, len(call.args))
    ]
    return [call.args[0], constant(weight), *constants]


def _lower_gemm(call: relax.Call, shape: ConvShape, weight: NDArray[np.int8], target: Target, *, matrix: bool) -> Lowered:  # fmt: skip
    assert isinstance(target, GpuTarget), target.name
    tile = decisions.choose_tile(shape, target)
    pad_value = 0 if matrix else int(call.attrs["pad_value"])
    problem = Problem(shape, _epilogue(call), pad_value, matrix)
    gemm = problem.gemm(tile)
    packed = layouts.pack_fragments(weight, shape.groups, gemm.packed_depth)
    args = _arguments(call, packed, shape.groups, gemm.blocks * layouts.BLOCK)
    return Lowered(gemm_workload(problem, target, tile), args, "mma.sync")


def lower_conv2d(call: relax.Call, target: Target) -> Lowered:
    shape, weight = conv_shape(call), value(call.args[1])
    if shape.depthwise:
        function = depthwise.Depthwise(shape, _epilogue(call), int(call.attrs["pad_value"])).function()
        args = _arguments(call, depthwise.pack_weight(weight), 1, shape.out_channels)
        return Lowered(function, args, "dp4a")
    if decisions.uses_tensor_cores(shape):
        return _lower_gemm(call, shape, weight, target, matrix=False)
    grouped = direct.Grouped(shape, _epilogue(call), int(call.attrs["pad_value"]))
    args = _arguments(call, direct.pack_taps(weight), 1, shape.out_channels)
    return Lowered(grouped.function(), args, "dp4a")


def lower_dense(call: relax.Call, target: Target) -> Lowered:
    *batch, k = dims(call.args[0])
    o, _ = dims(call.args[1])
    shape = ConvShape(1, 1, prod(batch), k, o, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    weight = value(call.args[1]).reshape(o, k, 1, 1)
    if decisions.uses_tensor_cores(shape):
        return _lower_gemm(call, shape, weight, target, matrix=True)
    packed = ceil_div(k, 4) * 4
    kernel = direct.Rows(shape.width, k, packed, o, _epilogue(call))
    return Lowered(kernel.function(), _arguments(call, layouts.pack_rows(weight, packed), 1, o), "dp4a")


def lower_lut(call: relax.Call, target: Target) -> Lowered:
    return SHARED.spatial(elementwise.lut(dims(call.args[0])), call, list(call.args), target, element_bytes=1)


BORDERS: Borders | None = None
"""Kernels pad on their own: a thread that copies a byte to shared memory knows whether it lies in the image."""

SHARED = Shared(UNSIGNED, _requantization, bounded, GpuSchedules())

LOWERINGS: dict[str, Lowering] = {
    **SHARED.elementwise,
    "qc.conv2d": lower_conv2d,
    "qc.dense": lower_dense,
    "qc.lut": lower_lut,
    QUANTIZE_TO_NHWC: SHARED.quantize_transposed,
}
"""The operators that CUDA has kernels for; what moves bytes is left to TVM and to ``passes/bind_threads.py``."""
