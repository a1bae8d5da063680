"""From a call of an integer operator to a kernel and its arguments."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import relax

from qcompiler.targets.arm import decisions, depthwise, layouts, tables
from qcompiler.targets.arm.finish import Epilogue
from qcompiler.targets.arm.requantization import Requantization, bounded
from qcompiler.targets.arm.sketches import Problem, dense_workload, depthwise_workload
from qcompiler.targets.base import Target
from qcompiler.targets.borders import QUANTIZE_TO_NHWC, Borders
from qcompiler.targets.cpu.channels import pack_channels
from qcompiler.targets.cpu.lowering import Lowered, Lowering, Shared, constant, conv_shape, dims, value
from qcompiler.targets.cpu.shapes import ConvShape
from qcompiler.targets.cpu.storage import SIGNED


def _requantization(attrs: Any, magnitude: float) -> Requantization:
    """The operator's last step; it saturates, whatever the magnitude."""
    return Requantization(int(attrs["zero_point"]), int(attrs["lo"]), int(attrs["hi"]))


def _epilogue(call: relax.Call) -> Epilogue:
    real = str(call.attrs["out_dtype"]) == "float32"
    shift = int(call.attrs["residual_shift"]) if len(call.args) > 4 else None
    return Epilogue(None if real else _requantization(call.attrs, 0.0), shift)


def _channel_constants(call: relax.Call) -> dict[int, NDArray[Any]]:
    """The constants of the output channels by their positions, for activations that are stored as q - 128."""
    weight = value(call.args[1]).astype(np.int64)
    found = {k: value(call.args[k]) for k in range(2, len(call.args)) if k != 4}
    sums = weight.reshape(weight.shape[0], -1).sum(1)
    found[2] = (found[2] + SIGNED.offset * sums).astype(
        np.int32
    )  # sum((x + 128) * w) = sum(x * w) + 128 * sum(w)
    if 6 in found:
        found[6] = (found[6].astype(np.int64) + SIGNED.offset * found[5].astype(np.int64)).astype(np.int32)
    return found


def _channel_args(call: relax.Call, pack: Callable[[NDArray[Any]], NDArray[Any]]) -> list[relax.Expr]:
    """Bias, multiplier, and with a residual the residual, its multiplier and its offset, packed."""
    constants = _channel_constants(call)
    return [call.args[k] if k == 4 else constant(pack(constants[k])) for k in range(2, len(call.args))]


def _lower_dense(call: relax.Call, shape: ConvShape, weight: NDArray[np.int8], target: Target, *, matrix: bool) -> Lowered:  # fmt: skip
    decision = decisions.dense_decision(target, shape)
    problem = Problem(
        shape, _epilogue(call), target.instruction, decision.vectors, matrix, bool(weight.min(initial=0) > -128),
        decisions.loads_halves(target), decisions.parallel_cycles(target, shape),
    )  # fmt: skip
    kernel = problem.dense(decision)
    packed = layouts.pack_weight(weight, shape.groups, kernel.cut, kernel.window)
    args = [
        call.args[0],
        constant(packed),
        *_channel_args(call, partial(pack_channels, blocks=kernel.cut.blocks, lanes=kernel.cut.lanes)),
    ]
    return Lowered(dense_workload(problem, target, decision), args, target.instruction)


def lower_conv2d(call: relax.Call, target: Target) -> Lowered:
    shape, weight = conv_shape(call), value(call.args[1])
    if not shape.depthwise:
        return _lower_dense(call, shape, weight, target, matrix=False)
    sdot = depthwise.uses_sdot(target.instruction, shape)
    problem = Problem(
        shape, _epilogue(call), target.instruction, 0, False, bool(weight.min() > -128), False,
        depthwise.cycles(shape),
    )  # fmt: skip
    packed = depthwise.pack_weight(weight, sdot=sdot)
    args = [call.args[0], constant(packed), *_channel_args(call, depthwise.pack_channels)]
    return Lowered(depthwise_workload(problem), args, "sdot" if sdot else "smull")


def lower_dense(call: relax.Call, target: Target) -> Lowered:
    *batch, k = dims(call.args[0])
    o, _ = dims(call.args[1])
    shape = ConvShape(1, 1, prod(batch), k, o, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    return _lower_dense(call, shape, value(call.args[1]).reshape(o, k, 1, 1), target, matrix=True)


def lower_lut(call: relax.Call, target: Target) -> Lowered:
    shape, table = dims(call.args[0]), constant(tables.stored_table(value(call.args[1])))
    kernel = partial(tables.table_lookup, shape)
    return Lowered(kernel(), [call.args[0], table], with_border=lambda border: kernel(border))


def _always(call: relax.Call, target: Target) -> bool:
    """Every kernel reads its input padded, and none pads on its own."""
    return True


BORDERS = Borders(frozenset({"qc.conv2d", "qc.lut", QUANTIZE_TO_NHWC}), _always, _always)
"""What ARM does about padding."""

SHARED = Shared(SIGNED, _requantization, bounded)

LOWERINGS: dict[str, Lowering] = {
    **SHARED.lowerings,
    "qc.conv2d": lower_conv2d,
    "qc.dense": lower_dense,
    "qc.lut": lower_lut,
}
"""The operators that ARM has kernels for; a lowering gives None for a call that it leaves to TVM."""
