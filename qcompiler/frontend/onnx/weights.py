"""Quantized constants: weights as the integer kernels take them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

WEIGHT_LIMIT = 127
"""Weights lie in [-127, 127]: -128 times -128, twice, leaves the 16 bits that some kernels sum in."""


@dataclass(frozen=True, eq=False)
class QuantizedConstant:
    """A constant behind DequantizeLinear: ``real = scale * (values - zero_point)``.

    Attributes:
        values: int8, uint8 or int32.
        scale: float32, of one element, or one an extent of ``axis``.
        zero_point: of the same shape as ``scale``.
        axis: which axis the scales belong to; None for one scale.
    """

    values: Array
    scale: Array
    zero_point: Array
    axis: int | None

    @property
    def array(self) -> Array:
        """The real numbers, float32."""
        return self.real().astype(np.float32)

    def real(self) -> NDArray[np.float64]:
        scale, zero_point = (self._aligned(a.astype(np.float64)) for a in (self.scale, self.zero_point))
        return (self.values.astype(np.float64) - zero_point) * scale

    def _aligned(self, array: Array) -> Array:
        if self.axis is None:
            return array.reshape(())
        shape = [1] * self.values.ndim
        shape[self.axis] = array.size
        return array.reshape(shape)

    def scaled(self, factor: float) -> QuantizedConstant:
        scale = (self.scale.astype(np.float64) * factor).astype(np.float32)
        return QuantizedConstant(self.values, scale, self.zero_point, self.axis)

    def transposed(self, order: list[int]) -> QuantizedConstant:
        axis = None if self.axis is None else order.index(self.axis)
        return QuantizedConstant(np.transpose(self.values, order), self.scale, self.zero_point, axis)

    def reshaped(self, shape: tuple[int, ...]) -> QuantizedConstant | None:
        """The same numbers in another shape; None if the scales' axis is lost."""
        axis = self.axis
        if axis is not None:
            before = int(np.prod(self.values.shape[:axis]))
            candidates = [
                k
                for k, extent in enumerate(shape)
                if int(np.prod(shape[:k])) == before and extent == self.values.shape[axis]
            ]
            if not candidates:
                return None
            axis = candidates[0]
        return QuantizedConstant(self.values.reshape(shape), self.scale, self.zero_point, axis)


@dataclass(frozen=True, eq=False)
class Weight:
    """Symmetric int8 weights with one scale an output channel, output channels first.

    Attributes:
        values: int8 in [-127, 127].
        scale: float32, ``[O]``.
        rounded: the largest change of a weight by rounding it anew, in steps of its old scale; 0 where every weight
            is what it was.
    """

    values: NDArray[np.int8]
    scale: NDArray[np.float32]
    rounded: float


def symmetric(constant: QuantizedConstant) -> Weight | None:
    """The weights without zero points; None where their scales do not belong to axis 0.

    ``q - zero_point`` is exact where it lies in [-127, 127]: always for int8 with zero point 0 but for a weight of
    -128, and for uint8 with zero point 128 but for a weight of 0. A channel that reaches further, as of asymmetric
    weights, takes the scale that puts its greatest weight on 127, and is rounded anew.
    """
    channels = constant.values.shape[0]
    if constant.axis not in (None, 0):
        return None
    scale = np.broadcast_to(constant.scale.reshape(-1).astype(np.float64), channels)
    zero_point = np.broadcast_to(constant.zero_point.reshape(-1).astype(np.int64), channels)
    column = (channels, *([1] * (constant.values.ndim - 1)))
    centered = constant.values.astype(np.int64) - zero_point.reshape(column)
    reach = np.abs(centered.reshape(channels, -1)).max(axis=1, initial=0)
    factor = np.maximum(reach / WEIGHT_LIMIT, 1.0)
    values = np.rint(centered / factor.reshape(column))
    change = np.abs(values * factor.reshape(column) - centered).max(initial=0.0)
    return Weight(values.astype(np.int8), (scale * factor).astype(np.float32), float(change))
