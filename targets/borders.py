"""Kernels that write their output inside a border, so that the next convolution finds it padded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tvm_ffi
from tvm import relax, tirx
from tvm.s_tir import SBlock, SBlockRealize

from qcompiler.targets.base import Target


@dataclass(frozen=True)
class Border:
    """Rows and columns around an NHWC tensor, all of one value, a whole number."""

    top: int
    left: int
    bottom: int
    right: int
    value: int

    def around(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor with its border."""
        n, h, w, c = shape
        return n, h + self.top + self.bottom, w + self.left + self.right, c

    def row_start(self, shape: tuple[int, ...], row: tirx.Expr) -> tirx.Expr:
        """Where row ``row`` of a tensor of ``shape``, counted over all images, begins in the flat padded tensor."""
        _, h, _, c = shape
        _, rows, columns, _ = self.around(shape)
        return ((row // h * rows + row % h + self.top) * columns + self.left) * c


NO_BORDER = Border(0, 0, 0, 0, 0)


QUANTIZE_TO_NHWC = "quantize_to_nhwc"
"""Name of a quantize node whose NCHW result is wanted in NHWC, among the operators of a target."""


CONV2D_OF_CONCAT = "conv2d_of_concat"
"""Name of a convolution that reads what is concatenated for it, among the operators of a target.

Its call has the tuple of these tensors as its first operand; one that is a call of ``qc.lut`` is looked up on the way.
"""


def border_of(pad: relax.Call) -> Border | None:
    """The border that a call of ``nn.pad`` puts around an NHWC tensor of an activation's dtype; None for other padding.

    Its value is a number as it is stored, of the tensor's dtype.
    """
    widths = tuple(int(w) for w in pad.attrs.pad_width)
    if (
        str(pad.ty.dtype) not in ("uint8", "int8", "float32", "uint16")
        or len(widths) != 8
        or str(pad.attrs.pad_mode) != "constant"
        or not float(pad.attrs.pad_value).is_integer()
    ):
        return None
    if any(widths[:2]) or any(widths[6:]) or min(widths) < 0:
        return None
    return Border(widths[2], widths[4], widths[3], widths[5], int(float(pad.attrs.pad_value)))


@dataclass(frozen=True)
class Borders:
    """What a family of targets can do about padding.

    Attributes:
        producers: operators whose kernels can write a border.
        wanted: whether a convolution reads its padded input in place, were it there.
        needed: whether it wants its input padded even if that takes a copy.
    """

    producers: frozenset[str]
    wanted: Callable[[relax.Call, Target], bool]
    needed: Callable[[relax.Call, Target], bool]


def fill(buffer: tirx.Buffer, start: tirx.Expr | int, count: int, value: int) -> tirx.Stmt:
    """Sets ``count`` elements of a flat buffer from ``start`` on."""
    k = tirx.Var("k", "int32")
    store = tirx.BufferStore(buffer, tirx.const(value, str(buffer.dtype)), [start + k])
    return tirx.For(k, 0, count, tirx.ForKind.SERIAL, store)


def border_fills(flat: tirx.Buffer, shape: tuple[int, ...], border: Border) -> list[tirx.Stmt]:
    """Fills the border around an NHWC tensor of ``shape``; ``flat`` holds all of it.

    The right border of a row and the left one of the next lie side by side, so each gap is one run of bytes.
    """
    n, h, w, c = shape
    _, rows, columns, _ = border.around(shape)
    image = tirx.Var("image", "int32")
    base = image * (rows * columns * c)
    row = columns * c
    first = border.top * row + border.left * c
    fills = []
    if first:
        fills.append(fill(flat, base, first, border.value))
    gap = (border.left + border.right) * c
    if gap and h > 1:
        i = tirx.Var("i", "int32")
        body = fill(flat, base + (i + border.top) * row + (border.left + w) * c, gap, border.value)
        fills.append(tirx.For(i, 0, h - 1, tirx.ForKind.SERIAL, body))
    last = border.right * c + border.bottom * row
    if last:
        start = base + (border.top + h - 1) * row + (border.left + w) * c
        fills.append(fill(flat, start, last, border.value))
    return [tirx.For(image, 0, n, tirx.ForKind.SERIAL, f) for f in fills]


def write_border(function: tirx.PrimFunc, border: Border) -> tirx.PrimFunc:
    """``function``, whose last argument is an NHWC output, with that output inside a border."""
    inner = function.params[-1]
    shape = tuple(int(d) for d in inner.shape)
    outer_shape = border.around(shape)
    _, rows, columns, c = outer_shape
    dtype = str(inner.dtype)
    outer = tirx.decl_buffer(outer_shape, dtype, name="padded_out")
    view = tirx.decl_buffer(
        shape, dtype, name="out", data=outer.data,
        strides=[rows * columns * c, columns * c, c, 1],
        elem_offset=tirx.const((border.top * columns + border.left) * c, "int32"),
    )  # fmt: skip
    flat = tirx.decl_buffer((rows * columns * c * shape[0],), dtype, name="flat_out", data=outer.data)
    body = tvm_ffi.structural_map(function.body, (tirx.Var, lambda v: view if v.same_as(inner) else v))
    fills = [tirx.DeclBuffer(flat, data=outer.data), *border_fills(flat, shape, border)]
    whole = tirx.SeqStmt([*fills, tirx.DeclBuffer(view, data=outer.data), body])
    return tirx.PrimFunc([*function.params[:-1], outer], in_root_block(whole), attrs=function.attrs)


def sequence(statements: list[tirx.Stmt]) -> tirx.Stmt:
    """Statements one after the other; one alone stands for itself."""
    return tirx.SeqStmt(statements) if len(statements) > 1 else statements[0]


def in_root_block(body: tirx.Stmt) -> tirx.Stmt:
    """``body`` in the block that TVM's passes expect around a kernel."""
    return SBlockRealize([], True, SBlock([], [], [], "root", body))
