"""Relax's own operators that move elements and change none, on any dtype."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from qcompiler.errors import VerificationError
from qcompiler.operators import spatial_axes
from qcompiler.reference.site import Array, Group, Kernel, Operand, Site, Static

_PAD_MODES = {"reflect": "reflect", "replicate": "edge", "circular": "wrap"}


def _reshape(site: Site) -> Kernel:
    shape = site.outputs[0][0]
    return Kernel(lambda arrays: (arrays[0].reshape(shape),))


def _broadcast_to(site: Site) -> Kernel:
    shape = site.outputs[0][0]
    return Kernel(lambda arrays: (np.broadcast_to(arrays[0], shape),))


def _permute_dims(site: Site) -> Kernel:
    axes = None if site.call.attrs["axes"] is None else site.integers("axes")
    return Kernel(lambda arrays: (np.transpose(arrays[0], axes),))


def _concat(site: Site) -> Kernel:
    # Without an axis the operands have one dimension, or the operator is not valid.
    axis = 0 if site.call.attrs["axis"] is None else site.integer("axis")
    return Kernel(lambda arrays: (np.concatenate(arrays, axis=axis),))


def _split(site: Site) -> Kernel:
    axis = site.integer("axis")
    points = np.cumsum([shape[axis] for shape, _ in site.outputs])[:-1]
    return Kernel(lambda arrays: tuple(np.split(arrays[0], points, axis=axis)))


def _strided_slice(site: Site) -> Kernel | None:
    numbers = [_numbers(argument) for argument in site.arguments[1:]]
    if len(numbers) < 3 or any(n is None for n in numbers):
        return None
    axes, begin, end = (n or () for n in numbers[:3])
    strides = numbers[3] if len(numbers) > 3 and numbers[3] else (1,) * len(axes)
    index = [slice(None)] * len(site.tensors[0].shape)
    for axis, start, stop, step in zip(axes, begin, end, strides, strict=True):
        index[axis] = slice(start, stop, step)
    return Kernel(lambda arrays: (arrays[0][tuple(index)],))


def _numbers(operand: Operand) -> tuple[int, ...] | None:
    """The integers of a tuple of constants, or None if ``operand`` is something else."""
    if not isinstance(operand, Group):
        return None
    values = [field.expr for field in operand.fields if isinstance(field, Static)]
    if len(values) != len(operand.fields) or not all(hasattr(v, "value") for v in values):
        return None
    return tuple(int(v.value) for v in values)


def _pad(site: Site) -> Kernel | None:
    widths = site.integers("pad_width")
    pairs = list(zip(widths[::2], widths[1::2], strict=True))
    mode = site.text("pad_mode")
    if min(widths, default=0) < 0:
        return None
    if mode == "constant":
        value = np.dtype(site.outputs[0][1]).type(site.call.attrs["pad_value"])
        return Kernel(lambda arrays: (np.pad(arrays[0], pairs, constant_values=value),))
    if mode not in _PAD_MODES:
        return None
    return Kernel(lambda arrays: (np.pad(arrays[0], pairs, mode=_PAD_MODES[mode]),))  # type: ignore[call-overload]


def _astype(site: Site) -> Kernel | None:
    target, source = np.dtype(site.outputs[0][1]), np.dtype(site.tensors[0].dtype)
    if target.kind not in "iufb" or (source.kind == "f" and target.kind != "f"):
        # What a float beyond the integer's range becomes differs from machine to machine.
        return None
    return Kernel(lambda arrays: (arrays[0].astype(target),))


def _take(site: Site) -> Kernel | None:
    if len(site.tensors) != 2:
        return None
    axis = None if site.call.attrs["axis"] is None else site.integer("axis")
    mode = site.text("mode")
    if mode in ("clip", "wrap"):
        return Kernel(lambda arrays: (np.take(arrays[0], arrays[1], axis=axis, mode=mode),))  # type: ignore[call-overload]
    if mode != "fast":
        return None

    shape = site.tensors[0].shape
    extent = int(np.prod(shape)) if axis is None else shape[axis]

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        indices = arrays[1]
        if indices.size and (indices.min() < 0 or indices.max() >= extent):
            raise VerificationError(
                f"{site.where} has indices from {indices.min()} to {indices.max()}; "
                f"the axis has {extent} entries"
            )
        return (np.take(arrays[0], indices, axis=axis),)

    return Kernel(run)


def _resize2d(site: Site) -> Kernel | None:
    layout, dtype = site.text("layout"), site.outputs[0][1]
    shape, out = site.tensors[0].shape, site.outputs[0][0]
    # TVM takes the values through float32, which changes wider integers.
    movable = dtype == site.tensors[0].dtype and dtype in ("uint8", "int8", "int16", "float32")
    if layout not in ("NCHW", "NHWC") or site.text("method") != "nearest_neighbor" or not movable:
        return None
    axes = spatial_axes(layout)[:2]
    mode, rounding = site.text("coordinate_transformation_mode"), site.text("rounding_method")
    rows, columns = (nearest_indices(shape[axis], out[axis], mode, rounding) for axis in axes)
    if rows is None or columns is None:
        return None
    return Kernel(lambda arrays: (arrays[0].take(rows, axis=axes[0]).take(columns, axis=axes[1]),))


def nearest_indices(extent: int, out: int, mode: str, rounding: str) -> Array | None:
    """Index of the source pixel of each of ``out`` pixels of nearest up- or down-sampling, as TVM defines it.

    Args:
        extent: extent of the source.
        mode: coordinate transformation, such as ``half_pixel``.
        rounding: rounding of the coordinate, such as ``round``; empty for the transformation's own.

    Returns:
        int64 [out], or None if this combination is not known here.
    """
    f32 = np.float32
    position = np.arange(out, dtype=f32)
    scale = f32(extent) / f32(out)
    rounding = rounding or ("round" if mode == "align_corners" else "floor")
    if mode == "asymmetric" and rounding == "floor" and out % extent == 0:
        return np.arange(out, dtype=np.int64) // (out // extent)
    if mode == "half_pixel" or (mode == "pytorch_half_pixel" and out > 1):
        source = (position + f32(0.5)) * scale - f32(0.5)
    elif mode == "align_corners" and out > 1:
        source = f32(extent - 1) / f32(out - 1) * position
    elif mode == "asymmetric":
        source = scale * position
    elif mode == "tf_half_pixel_for_nn":
        source = (position + f32(0.5)) * scale
    else:
        return None
    # TVM moves floor and ceil by this much, against rounding errors of the coordinate.
    epsilon = f32(1e-5)
    rounded: Array
    if rounding == "round":
        rounded = np.rint(source)
    elif rounding == "round_prefer_floor":
        rounded = np.ceil(source - f32(0.5))
    elif rounding == "round_prefer_ceil":
        rounded = np.floor(source + f32(0.5))
    elif rounding == "floor":
        rounded = np.floor(source + epsilon)
    elif rounding == "ceil":
        rounded = np.ceil(source - epsilon)
    else:
        return None
    return np.clip(rounded, 0, extent - 1).astype(np.int64)


MOVEMENT_KERNELS: Mapping[str, Callable[[Site], Kernel | None]] = MappingProxyType(
    {
        "relax.reshape": _reshape,
        "relax.flatten": _reshape,
        "relax.squeeze": _reshape,
        "relax.expand_dims": _reshape,
        "relax.broadcast_to": _broadcast_to,
        "relax.permute_dims": _permute_dims,
        "relax.concat": _concat,
        "relax.split": _split,
        "relax.strided_slice": _strided_slice,
        "relax.nn.pad": _pad,
        "relax.astype": _astype,
        "relax.take": _take,
        "relax.image.resize2d": _resize2d,
    }
)
"""Operators with a NumPy form; None where the attributes ask for something that only TVM itself does."""
