"""Convolution and matrix product of 8-bit integers: exact sums through floating-point BLAS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from qcompiler.errors import VerificationError
from qcompiler.operators import spatial_axes, window_extent
from qcompiler.reference.epilogue import Epilogue, prepare_epilogue, sum_dtype
from qcompiler.reference.site import Array, Constant, Kernel, Site

PATCH_BYTES = 64 << 20
"""Patches are laid out for as many images at once as stay below this, for one at least."""

Sums = Callable[[Array], Array]
"""From x to the exact sums of its products with the weights, as integral floats."""


def _accumulation(site: Site, prepare: Callable[[Array], Sums], channel_shape: tuple[int, ...]) -> Kernel:
    """Kernel of a call (x, weight, bias, multiplier[, residual, residual multiplier, residual offset]).

    What depends on the weights is prepared once if they are constants, as they are in a folded module.
    """
    site.expect("uint8", "int8", "int32", "float32", "uint8", "int32", "int32")
    tensors = site.tensors
    if len(tensors) not in (4, 7):
        raise VerificationError(
            f"{site.where} has {len(tensors)} arguments; allowed: 4, or 7 with a residual"
        )
    has_residual = len(tensors) == 7
    if has_residual and tensors[4].shape != site.outputs[0][0]:
        raise VerificationError(
            f"{site.where} has a residual of shape {tensors[4].shape}; its output is {site.outputs[0][0]}"
        )
    parameters = [1, 2, 3, 5, 6] if has_residual else [1, 2, 3]

    def bind(arrays: Sequence[Array]) -> tuple[Sums, Epilogue]:
        return prepare(arrays[0]), prepare_epilogue(site, arrays[0], arrays[1:], channel_shape)

    constants = [leaf.array for leaf in (tensors[i] for i in parameters) if isinstance(leaf, Constant)]
    prepared = bind(constants) if len(constants) == len(parameters) else None

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        sums, epilogue = prepared or bind([arrays[i] for i in parameters])
        return (epilogue(sums(arrays[0]), arrays[4] if has_residual else None),)

    return Kernel(run)


def dense(site: Site) -> Kernel:
    """``qc.dense``."""

    def prepare(weight: Array) -> Sums:
        matrix = np.ascontiguousarray(weight.T.astype(sum_dtype(weight)))

        def sums(x: Array) -> Array:
            rows = x.reshape(-1, x.shape[-1]).astype(matrix.dtype)
            out: Array = (rows @ matrix).reshape(*x.shape[:-1], matrix.shape[1])
            return out

        return sums

    return _accumulation(site, prepare, (-1,))


def conv2d(site: Site) -> Kernel:
    """``qc.conv2d``."""
    layout, groups = site.text("layout"), site.integer("groups")
    strides, padding, dilation = (site.integers(name) for name in ("strides", "padding", "dilation"))
    x, weight_shape = site.tensors[0].shape, site.tensors[1].shape
    axes = spatial_axes(layout)
    if x[axes[2]] != weight_shape[1] * groups or weight_shape[0] % groups:
        raise VerificationError(
            f"{site.where} in {layout} has x {x}, weight {weight_shape} and groups {groups}, which do not fit"
        )
    out = tuple(
        window_extent(x[axes[i]], weight_shape[2 + i], strides[i], padding[i] + padding[2 + i], dilation[i])
        for i in (0, 1)
    )
    geometry = _Geometry(out, strides, padding, dilation, groups, site.integer("pad_value"), layout)

    def prepare(weight: Array) -> Sums:
        if geometry.groups > 1 and weight.shape[1] == 1:
            return _depthwise(geometry, weight)
        return _grouped(geometry, weight)

    return _accumulation(site, prepare, (-1, 1, 1) if layout == "NCHW" else (-1,))


@dataclass(frozen=True)
class _Geometry:
    out: tuple[int, ...]
    strides: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pad_value: int
    layout: str

    def pad(self, x: Array, dtype: type[np.floating]) -> Array:
        """``x`` in ``dtype`` with its borders filled."""
        if not any(self.padding):
            return np.ascontiguousarray(x, dtype=dtype)
        top, left, bottom, right = self.padding
        hax, wax, _ = spatial_axes(self.layout)
        shape, inside = list(x.shape), [slice(None)] * 4
        shape[hax] += top + bottom
        shape[wax] += left + right
        inside[hax] = slice(top, top + x.shape[hax])
        inside[wax] = slice(left, left + x.shape[wax])
        padded = np.full(shape, self.pad_value, dtype=dtype)
        padded[tuple(inside)] = x
        return padded

    def tap(self, padded: Array, row: int, column: int) -> Array:
        """View of what kernel position (row, column) meets at every output position."""
        hax, wax, _ = spatial_axes(self.layout)
        index = [slice(None)] * 4
        for axis, position, i in ((hax, row, 0), (wax, column, 1)):
            start = position * self.dilation[i]
            index[axis] = slice(start, start + (self.out[i] - 1) * self.strides[i] + 1, self.strides[i])
        return padded[tuple(index)]

    def patches(self, padded: Array, kernel: tuple[int, int]) -> Array:
        """View [N, OH, OW, KH, KW, C] of a padded activation of either layout."""
        hax, wax, cax = spatial_axes(self.layout)
        n, c = padded.strides[0], padded.strides[cax]
        h, w = padded.strides[hax], padded.strides[wax]
        return as_strided(
            padded,
            shape=(padded.shape[0], *self.out, *kernel, padded.shape[cax]),
            strides=(
                n,
                h * self.strides[0],
                w * self.strides[1],
                h * self.dilation[0],
                w * self.dilation[1],
                c,
            ),
            writeable=False,
        )


def _depthwise(geometry: _Geometry, weight: Array) -> Sums:
    """Shift, multiply and add over the kernel's positions; weight [C * m, 1, KH, KW]."""
    outputs, _, rows, columns = weight.shape
    dtype = sum_dtype(weight)
    channel_axis = spatial_axes(geometry.layout)[2]
    channel_shape = (-1, 1, 1) if geometry.layout == "NCHW" else (-1,)
    taps = {
        (r, c): weight[:, 0, r, c].astype(dtype).reshape(channel_shape)
        for r in range(rows)
        for c in range(columns)
    }

    def sums(x: Array) -> Array:
        padded = geometry.pad(x, dtype)
        if outputs != geometry.groups:
            padded = np.repeat(padded, outputs // geometry.groups, axis=channel_axis)
        acc = geometry.tap(padded, 0, 0) * taps[0, 0]
        product = np.empty_like(acc)
        for (r, c), factor in taps.items():
            if (r, c) != (0, 0):
                np.multiply(geometry.tap(padded, r, c), factor, out=product)
                acc += product
        return acc

    return sums


def _grouped(geometry: _Geometry, weight: Array) -> Sums:
    """Patches times weights, one matrix product a group; weight [O, C / groups, KH, KW]."""
    outputs, depth, rows, columns = weight.shape
    groups, dtype = geometry.groups, sum_dtype(weight)
    length, positions = depth * rows * columns, geometry.out[0] * geometry.out[1]
    weights = weight.astype(dtype).reshape(groups, outputs // groups, depth, rows, columns)
    pointwise = (rows, columns) == (1, 1) and geometry.strides == (1, 1)
    # NCHW multiplies weights [O, K] by columns [K, positions], NHWC rows [positions, K] by weights [K, O]:
    # each result is in its own layout without a transposition.
    if geometry.layout == "NCHW":
        matrix = weights.reshape(groups, outputs // groups, length)
    else:
        matrix = np.ascontiguousarray(
            weights.transpose(0, 3, 4, 2, 1).reshape(groups, length, outputs // groups)
        )

    def planar(padded: Array) -> Array:
        n = len(padded)
        view = padded
        if not pointwise:
            view = geometry.patches(padded, (rows, columns)).transpose(0, 5, 3, 4, 1, 2)
        product: Array = np.matmul(matrix, view.reshape(n, groups, length, positions))
        return product.reshape(n, outputs, *geometry.out)

    def channels_last(padded: Array) -> Array:
        n = len(padded)
        if groups == 1:
            view = padded if pointwise else geometry.patches(padded, (rows, columns))
            product: Array = view.reshape(n * positions, length) @ matrix[0]
        else:
            split = _split_last(geometry.patches(padded, (rows, columns)), groups)
            by_group = split.transpose(5, 0, 1, 2, 3, 4, 6).reshape(groups, n * positions, length)
            product = np.matmul(by_group, matrix).transpose(1, 0, 2)
        return product.reshape(n, *geometry.out, outputs)

    multiply = planar if geometry.layout == "NCHW" else channels_last
    step = max(1, PATCH_BYTES // max(1, positions * length * groups * np.dtype(dtype).itemsize))

    def sums(x: Array) -> Array:
        padded = geometry.pad(x, dtype)
        if len(padded) <= step:
            return multiply(padded)
        return np.concatenate([multiply(padded[i : i + step]) for i in range(0, len(padded), step)])

    return sums


def _split_last(view: Array, groups: int) -> Array:
    """The last axis as [groups, depth], without a copy of overlapping patches."""
    depth = view.shape[-1] // groups
    return as_strided(
        view,
        shape=(*view.shape[:-1], groups, depth),
        strides=(*view.strides[:-1], view.strides[-1] * depth, view.strides[-1]),
        writeable=False,
    )
