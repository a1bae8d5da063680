"""The integer operators without weights: element-wise, tables, pools, and the borders to float."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from qcompiler.errors import VerificationError
from qcompiler.operators import INTEGER_OPERATORS, spatial_axes
from qcompiler.reference.accumulate import conv2d, dense
from qcompiler.reference.epilogue import INT32_MAX, check_int32, clip_bounds, requantize
from qcompiler.reference.site import Array, Kernel, Site


def _quantize(site: Site) -> Kernel:
    site.expect("float32")
    inverse, zero_point, (lo, hi) = site.float32("inv_scale"), site.integer("zero_point"), clip_bounds(site)

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        product = arrays[0] * inverse
        if np.isnan(product).any():
            raise VerificationError(
                f"{site.where} meets a NaN, which has no integer; check the inputs for NaN"
            )
        return (requantize(product, zero_point, lo, hi),)

    return Kernel(run)


def _dequantize(site: Site) -> Kernel:
    site.expect("uint8")
    levels = (np.arange(256) - site.integer("zero_point")).astype(np.float32)
    table = levels * site.float32("scale")
    return Kernel(lambda arrays: (table[arrays[0]],))


def _add(site: Site) -> Kernel:
    site.expect("uint8", "uint8")
    a, b = site.integer("a_multiplier"), site.integer("b_multiplier")
    offset, shift, (lo, hi) = site.integer("offset"), site.integer("shift"), clip_bounds(site)
    # Bounds every partial sum too, so that int32 arithmetic never wraps.
    fits = 255 * (abs(a) + abs(b)) + abs(offset) <= INT32_MAX
    dtype = np.int32 if fits else np.int64

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        total: Array = np.multiply(arrays[0], a, dtype=dtype)
        total = total + np.multiply(arrays[1], b, dtype=dtype)
        total += offset
        if not fits:
            check_int32(total, site.where, "the sum before the shift")
        total >>= shift
        return (np.clip(total, lo, hi, out=total).astype(np.uint8),)

    return Kernel(run)


def _mul(site: Site) -> Kernel:
    site.expect("uint8", "uint8")
    a_zero, b_zero = np.int32(site.integer("a_zero_point")), np.int32(site.integer("b_zero_point"))
    multiplier, zero_point = site.float32("multiplier"), site.integer("zero_point")
    lo, hi = clip_bounds(site)

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        product = (arrays[0].astype(np.int32) - a_zero) * (arrays[1].astype(np.int32) - b_zero)
        return (requantize(product.astype(np.float32) * multiplier, zero_point, lo, hi),)

    return Kernel(run)


def _lut(site: Site) -> Kernel:
    site.expect("uint8", "uint8")
    if site.tensors[1].shape != (256,):
        raise VerificationError(
            f"{site.where} has a table of shape {site.tensors[1].shape}; it must have 256 entries"
        )
    return Kernel(lambda arrays: (arrays[1][arrays[0]],))


def _max_pool2d(site: Site) -> Kernel:
    site.expect("uint8")
    window = _window(site, site.integers("dilation"))
    # The padding is 0, the least value there is.
    return Kernel(lambda arrays: (window(arrays[0], np.maximum),))


def _avg_pool2d(site: Site) -> Kernel:
    site.expect("uint8", "float32")
    layout = site.text("layout")
    hax, wax, _ = spatial_axes(layout)
    x_shape, pool = site.tensors[0].shape, site.integers("pool_size")
    if min(pool[0], x_shape[hax]) * min(pool[1], x_shape[wax]) * 255 > INT32_MAX:
        raise VerificationError(
            f"{site.where}: a window of {pool[0]} x {pool[1]} can overflow int32; pool in two steps"
        )
    window = _window(site, (1, 1))
    input_zero, zero_point = np.int32(site.integer("input_zero_point")), site.integer("zero_point")
    lo, hi = clip_bounds(site)

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        # Less the zero point first, so that padding with 0 adds nothing.
        acc = window(arrays[0].astype(np.int32) - input_zero, np.add)
        multiplier = arrays[1] if layout == "NCHW" else arrays[1][:, :, None]
        return (requantize(acc.astype(np.float32) * multiplier, zero_point, lo, hi),)

    return Kernel(run)


def _window(site: Site, dilation: tuple[int, ...]) -> Callable[[Array, np.ufunc], Array]:
    """Reduction over sliding windows, rows first and columns next; positions outside of x are 0."""
    axes = spatial_axes(site.text("layout"))[:2]
    out = [site.outputs[0][0][axis] for axis in axes]
    pool, strides, padding = site.integers("pool_size"), site.integers("strides"), site.integers("padding")

    def reduce(x: Array, combine: np.ufunc) -> Array:
        for axis, extent, size, stride, step, before in zip(
            axes, out, pool, strides, dilation, padding[:2], strict=True
        ):
            # Rounding up lets the last window pass the right padding, rounding down lets it stop short of it.
            after = max(0, (extent - 1) * stride + step * (size - 1) + 1 - before - x.shape[axis])
            if before or after:
                x = np.pad(x, [(before, after) if i == axis else (0, 0) for i in range(4)])
            taps = []
            for start in range(0, size * step, step):
                index = [slice(None)] * 4
                index[axis] = slice(start, start + (extent - 1) * stride + 1, stride)
                taps.append(x[tuple(index)])
            acc = taps[0].copy()
            for tap in taps[1:]:
                combine(acc, tap, out=acc)
            x = acc
        return x

    return reduce


INTEGER_KERNELS: Mapping[str, Callable[[Site], Kernel]] = MappingProxyType(
    {
        "qc.quantize": _quantize,
        "qc.dequantize": _dequantize,
        "qc.conv2d": conv2d,
        "qc.dense": dense,
        "qc.add": _add,
        "qc.mul": _mul,
        "qc.lut": _lut,
        "qc.max_pool2d": _max_pool2d,
        "qc.avg_pool2d": _avg_pool2d,
    }
)
assert set(INTEGER_KERNELS) == INTEGER_OPERATORS
