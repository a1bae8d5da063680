"""From calls of operators to kernels, as far as it is the same for all families of processors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tvm import relax, tirx
from tvm.ir import Constant, Expr

from qcompiler.targets.base import Target
from qcompiler.targets.borders import NO_BORDER, QUANTIZE_TO_NHWC, Border, border_of
from qcompiler.targets.cpu import elementwise, movement
from qcompiler.targets.cpu.shapes import ConvShape, Kernel, unscheduled
from qcompiler.targets.cpu.storage import Requantize, Storage
from qcompiler.targets.workload import Sketch, Workload

Lowering = Callable[[relax.Call, Target], "Lowered | None"]


@dataclass(frozen=True)
class Lowered:
    """A kernel for one call.

    Attributes:
        kernel: the kernel, output last: to be scheduled, or scheduled already.
        args: what it is called with: activations of the call and packed constants.
        instruction: the multiply-accumulate instruction of its inner loop, or None.
        reason: why it is not the target's own, or None.
        arithmetic: formats of activations, weights and sums of a float layer, for people; None for any other call.
        with_border: the kernel that writes its output inside a border, where it is not ``kernel`` with its stores moved.
    """

    kernel: Workload | tirx.PrimFunc
    args: list[relax.Expr]
    instruction: str | None = None
    reason: str | None = None
    arithmetic: str | None = None
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


def shape_of_output(shape: ConvShape) -> tuple[int, int, int, int]:
    return shape.batch, shape.out_height, shape.out_width, shape.out_channels


def conv_shape(call: relax.Call, data: tuple[int, ...] | None = None) -> ConvShape:
    """The extents of a call of ``qc.conv2d`` in NHWC; ``data`` are those of its first operand, if it is a tuple."""
    attrs = call.attrs
    assert str(attrs["layout"]) == "NHWC"
    n, h, w, c = data or dims(call.args[0])
    o, _, kh, kw = dims(call.args[1])
    return ConvShape(
        n, h, w, c, o, (kh, kw), ints(attrs["strides"]), ints(attrs["padding"]), ints(attrs["dilation"]),
        int(attrs["groups"]),
    )  # fmt: skip


def workload(kernel: Kernel, call: relax.Call, name: str, sketch: Sketch) -> Workload:
    """A kernel with one schedule and no samples in it."""
    extents = "x".join(str(d) for d in dims(call.args[0]))
    return Workload(name, f"{name} {extents}", unscheduled(kernel), (sketch,), tunable=False)


class Schedules(Protocol):
    """How a family schedules kernels that map or move bytes; ``call`` is what a kernel computes."""

    def spatial(self, kernel: Kernel, call: relax.Call, target: Target, *, element_bytes: int) -> Sketch:
        """Of a kernel whose elements are computed each for itself from such of ``element_bytes``, in one block."""

    def pool(self, call: relax.Call, target: Target, *, epilogue: bool) -> Sketch:
        """Of a window in loops, block ``acc`` before ``out`` where there is an ``epilogue``, else ``out`` alone."""

    def transpose(self, call: relax.Call, target: Target) -> Sketch:
        """Of a kernel that reads NCHW and writes NHWC."""


class CpuSchedules:
    """Loops over the output in vectors, shared among threads where that is worth it."""

    def spatial(self, kernel: Kernel, call: relax.Call, target: Target, *, element_bytes: int) -> Sketch:
        shapes = [tuple(int(d) for d in t.shape) for t in kernel.tensors]
        out = shapes[-1]
        flat = all(s == out or s == (256,) for s in shapes)
        return partial(
            elementwise.schedule_spatial,
            cycles=prod(out) // 2,
            vector=target.vector_bits // 8 // element_bytes,
            flat=flat and len(out) > 0,
        )

    def pool(self, call: relax.Call, target: Target, *, epilogue: bool) -> Sketch:
        vector = target.int32_lanes if epilogue else target.vector_bits // 8
        cycles = prod(dims(call.args[0])) // 4
        return partial(elementwise.schedule_pool, cycles=cycles, vector=vector, epilogue=epilogue)

    def transpose(self, call: relax.Call, target: Target) -> Sketch:
        cycles = prod(dims(call.args[0])) // 2
        return partial(elementwise.schedule_transpose, cycles=cycles, lanes=target.int32_lanes)


@dataclass(frozen=True)
class Shared:
    """The lowerings that families share.

    Attributes:
        storage: how activations lie in memory.
        requantization: an operator's last step, from its attributes, for scaled values of at most a magnitude.
        bounded: puts bounds, in terms of q, to an int32 and stores it.
        schedules: of the kernels.
    """

    storage: Storage
    requantization: Callable[[Any, float], Requantize]
    bounded: Callable[[Expr, int, int], Expr]
    schedules: Schedules = field(default_factory=CpuSchedules)

    def spatial(
        self, kernel: Kernel, call: relax.Call, args: list[relax.Expr], target: Target, *, element_bytes: int
    ) -> Lowered:
        sketch = self.schedules.spatial(kernel, call, target, element_bytes=element_bytes)
        return Lowered(workload(kernel, call, str(call.op.name).removeprefix("qc."), sketch), args)

    def quantize(self, call: relax.Call, target: Target) -> Lowered:
        last = self.requantization(call.attrs, float("inf"))
        kernel = elementwise.quantize(dims(call.args[0]), float(call.attrs["inv_scale"]), last)
        return self.spatial(kernel, call, [call.args[0]], target, element_bytes=4)

    def dequantize(self, call: relax.Call, target: Target) -> Lowered:
        kernel = elementwise.dequantize(
            dims(call.args[0]), float(call.attrs["scale"]), int(call.attrs["zero_point"]), self.storage
        )
        return self.spatial(kernel, call, [call.args[0]], target, element_bytes=4)

    def add(self, call: relax.Call, target: Target) -> Lowered:
        a = call.attrs
        kernel = elementwise.add(
            dims(call.args[0]), dims(call.args[1]), np.broadcast_shapes(dims(call.args[0]), dims(call.args[1])),
            (int(a["a_multiplier"]), int(a["b_multiplier"])), int(a["offset"]), int(a["shift"]),
            lambda value: self.bounded(value, int(a["lo"]), int(a["hi"])), self.storage,
        )  # fmt: skip
        return self.spatial(kernel, call, list(call.args), target, element_bytes=4)

    def mul(self, call: relax.Call, target: Target) -> Lowered:
        a = call.attrs
        multiplier = float(a["multiplier"])
        kernel = elementwise.mul(
            dims(call.args[0]), dims(call.args[1]), np.broadcast_shapes(dims(call.args[0]), dims(call.args[1])),
            (int(a["a_zero_point"]), int(a["b_zero_point"])), multiplier, self.requantization(a, 255 * 255 * abs(multiplier)),
            self.storage,
        )  # fmt: skip
        return self.spatial(kernel, call, list(call.args), target, element_bytes=4)

    def max_pool2d(self, call: relax.Call, target: Target) -> Lowered:
        a = call.attrs
        kernel = elementwise.max_pool2d(
            dims(call.args[0]), ints(a["out_size"]), ints(a["pool_size"]), ints(a["strides"]), ints(a["padding"]),
            ints(a["dilation"]), self.storage,
        )  # fmt: skip
        if kernel.whole:
            return self.spatial(kernel, call, [call.args[0]], target, element_bytes=1)
        sketch = self.schedules.pool(call, target, epilogue=False)
        return Lowered(workload(kernel, call, "max_pool2d", sketch), [call.args[0]])

    def avg_pool2d(self, call: relax.Call, target: Target) -> Lowered:
        a = call.attrs
        multiplier = value(call.args[1])
        window = ints(a["pool_size"])
        magnitude = 255 * prod(window) * float(np.abs(multiplier).max(initial=0.0))
        kernel = elementwise.avg_pool2d(
            dims(call.args[0]), multiplier.shape, window, ints(a["strides"]), ints(a["padding"]),
            int(a["input_zero_point"]), self.requantization(a, magnitude), self.storage,
        )  # fmt: skip
        sketch = self.schedules.pool(call, target, epilogue=True)
        return Lowered(workload(kernel, call, "avg_pool2d", sketch), [call.args[0], call.args[1]])

    def concat(self, call: relax.Call, target: Target) -> Lowered | None:
        """Concatenation of bytes along the last axis; along another one it is TVM's."""
        fields = list(call.args[0].fields)
        rank = len(dims(call))
        if str(call.ty.dtype) not in ("uint8", "int8") or int(call.attrs.axis) % rank != rank - 1:
            return None
        return Lowered(
            movement.concat_last([dims(f) for f in fields], target.vector_bits // 8, str(call.ty.dtype)),
            fields,
        )

    def permute_dims(self, call: relax.Call, target: Target) -> Lowered | None:
        """The exchange of the last two axes of bytes, the first of them short; any other is TVM's."""
        shape = dims(call.args[0])
        swapped = (*range(len(shape) - 2), len(shape) - 1, len(shape) - 2)
        if (
            str(call.ty.dtype) not in ("uint8", "int8")
            or call.attrs.axes is None
            or ints(call.attrs.axes) != swapped
        ):
            return None
        if not 2 <= shape[-2] <= movement.INTERLEAVED or shape[-1] == 1:
            return None
        return Lowered(
            movement.swap_last(shape, target.vector_bits // 8 // shape[-2], str(call.ty.dtype)),
            [call.args[0]],
        )

    def quantize_to_nhwc(self, call: relax.Call, target: Target) -> Lowered:
        """``permute_dims(qc.quantize(x), [0, 2, 3, 1])`` of an NCHW input, in one kernel; ``call`` is the quantize."""
        last = self.requantization(call.attrs, float("inf"))
        shape, inv_scale = dims(call.args[0]), float(call.attrs["inv_scale"])
        if shape[1] <= movement.INTERLEAVED:
            kernel = partial(
                movement.quantize_interleaved,
                shape,
                inv_scale,
                last,
                lanes=target.int32_lanes,
                dtype=self.storage.dtype,
            )
            return Lowered(kernel(border=NO_BORDER), [call.args[0]], with_border=lambda b: kernel(border=b))
        return self.quantize_transposed(call, target)

    def quantize_transposed(self, call: relax.Call, target: Target) -> Lowered:
        """The same in loops over the output, for any number of channels."""
        last = self.requantization(call.attrs, float("inf"))
        kernel = elementwise.quantize_to_nhwc(dims(call.args[0]), float(call.attrs["inv_scale"]), last)
        sketch = self.schedules.transpose(call, target)
        return Lowered(workload(kernel, call, "quantize_to_nhwc", sketch), [call.args[0]])

    def pad(self, call: relax.Call, target: Target) -> Lowered | None:
        """Constant padding of rows and columns of an NHWC activation; any other is TVM's."""
        border = border_of(call)
        if border is None:
            return None
        dtype = str(call.ty.dtype)
        vector = target.vector_bits // 8 // np.dtype(dtype).itemsize
        return Lowered(
            movement.pad(dims(call.args[0]), border, vector, dtype),
            [call.args[0]],
        )

    @property
    def elementwise(self) -> dict[str, Lowering]:
        """Those of integer operators, by operator: their kernels say nothing of the machine."""
        return {
            "qc.quantize": self.quantize,
            "qc.dequantize": self.dequantize,
            "qc.add": self.add,
            "qc.mul": self.mul,
            "qc.max_pool2d": self.max_pool2d,
            "qc.avg_pool2d": self.avg_pool2d,
        }

    @property
    def lowerings(self) -> dict[str, Lowering]:
        """All of them, by operator; those that move bytes are written in the vectors of a processor."""
        return {
            **self.elementwise,
            "relax.concat": self.concat,
            "relax.nn.pad": self.pad,
            "relax.permute_dims": self.permute_dims,
            QUANTIZE_TO_NHWC: self.quantize_to_nhwc,
        }
