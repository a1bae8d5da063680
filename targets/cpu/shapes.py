"""Extents of kernels, and kernels before they are scheduled."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tvm import te, tirx

from qcompiler.operators import window_extent

PARALLEL_MINIMUM = 15_000
"""Cycles of a kernel below which it runs on one thread: waking the pool and waiting for it costs about 7000."""


def loop_kind(cycles: int) -> tirx.ForKind:
    """Kind of the outermost loop of a kernel that takes about ``cycles`` on one core."""
    return tirx.ForKind.PARALLEL if cycles >= PARALLEL_MINIMUM else tirx.ForKind.SERIAL


def unscheduled(kernel: Kernel) -> tirx.PrimFunc:
    """The function of ``kernel``."""
    return te.create_prim_func(kernel.tensors).with_attr("tirx.noalias", True)


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def divisors(n: int, limit: int) -> list[int]:
    """The divisors of ``n`` that are at most ``limit``, ascending."""
    return [d for d in range(1, min(n, limit) + 1) if n % d == 0]


def divisor_at_most(n: int, limit: int) -> int:
    """The largest divisor of ``n`` that is at most ``limit``."""
    return divisors(n, limit)[-1]


@dataclass(frozen=True)
class ConvShape:
    """Extents of a convolution; padding is (top, left, bottom, right)."""

    batch: int
    height: int
    width: int
    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    dilation: tuple[int, int]
    groups: int

    @property
    def out_height(self) -> int:
        pads = self.padding[0] + self.padding[2]
        return window_extent(self.height, self.kernel[0], self.strides[0], pads, self.dilation[0])

    @property
    def out_width(self) -> int:
        pads = self.padding[1] + self.padding[3]
        return window_extent(self.width, self.kernel[1], self.strides[1], pads, self.dilation[1])

    def on_padded_input(self) -> ConvShape:
        """The same convolution of an input that is padded already."""
        top, left, bottom, right = self.padding
        height, width = self.height + top + bottom, self.width + left + right
        return replace(self, height=height, width=width, padding=(0, 0, 0, 0))

    @property
    def pointwise(self) -> bool:
        return self.kernel == (1, 1) and not any(self.padding)

    @property
    def macs(self) -> int:
        """Multiply-accumulates, without those that padding and packing add."""
        outputs = self.batch * self.out_height * self.out_width * self.out_channels
        return outputs * self.kernel[0] * self.kernel[1] * (self.in_channels // self.groups)

    def describe(self, matrix: bool) -> str:
        """A line for people."""
        if matrix:
            return f"dense {self.width}x{self.in_channels} -> {self.out_channels}"
        kernel = "x".join(str(k) for k in self.kernel)
        extras = [
            f"{name} {value[0]}" if len(set(value)) == 1 else f"{name} {value}"
            for name, value, plain in (
                ("stride", self.strides, (1, 1)),
                ("padding", self.padding, (0, 0, 0, 0)),
                ("dilation", self.dilation, (1, 1)),
                ("groups", (self.groups,), (1,)),
            )
            if value != plain
        ]
        extents = f"{self.batch}x{self.height}x{self.width}x{self.in_channels}"
        return ", ".join([f"conv2d {extents} -> {self.out_channels}", kernel, *extras])

    @property
    def depthwise(self) -> bool:
        return self.groups == self.in_channels == self.out_channels and self.groups > 1


@dataclass(frozen=True)
class Kernel:
    """A kernel before it is scheduled.

    Attributes:
        tensors: its arguments, the output last.
        whole: tiles cover the output exactly; otherwise the last ones go through a buffer.
        padded: it has a block ``pad`` that copies its input.
    """

    tensors: list[te.Tensor]
    whole: bool
    padded: bool
