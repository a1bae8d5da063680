"""Sorting along rows as one kernel that calls nothing: TVM's own calls a library that bundles do not carry."""

from __future__ import annotations

from functools import cache

from tvm.script import tirx as T
from tvm.tirx import PrimFunc

OPAQUE = 8
"""TVM's pattern of an operator that is not fused with others."""


@cache
def order_rows(rows: int, length: int, kept: int, dtype: str, index_dtype: str, descending: bool) -> PrimFunc:
    """The kernel of a stable order: merge sort of positions, from runs of one to the whole row.

    Args:
        rows, length: extents of the input.
        kept: how many of each row's first elements come out.
        dtype: of the elements.
        index_dtype: of the positions.
        descending: the largest first; equal elements keep their order in either case.

    Returns:
        A function of ``x`` [rows, length], ``values`` [rows, kept] and ``indices`` [rows, kept], of which it writes
        the last two.
    """
    levels = max(length - 1, 0).bit_length()

    def before(a: T.PrimExpr, b: T.PrimExpr) -> T.PrimExpr:
        return a > b if descending else a < b

    @T.prim_func(s_tir=True)
    def kernel(
        x: T.Buffer((rows, length), dtype),
        values: T.Buffer((rows, kept), dtype),
        indices: T.Buffer((rows, kept), index_dtype),
    ) -> None:
        T.func_attr({"tirx.noalias": True, "op_pattern": OPAQUE})
        with T.sblock("root"):
            positions = T.alloc_buffer((rows, 2, length), "int32")
            cursors = T.alloc_buffer((rows, 2), "int32")
            left = T.alloc_buffer((rows,), "int32")
            right = T.alloc_buffer((rows,), "int32")
            for r in T.parallel(rows):
                with T.sblock("order"):
                    v = T.axis.spatial(rows, r)
                    T.reads(x[v, 0:length])
                    T.writes(values[v, 0:kept], indices[v, 0:kept])
                    for k in T.serial(length):
                        positions[v, 0, k] = k
                    for level in T.serial(levels):
                        width: T.let[T.int32] = T.shift_left(1, level)
                        source: T.let[T.int32] = level % 2
                        for k in T.serial(length):
                            start: T.let[T.int32] = k // (2 * width) * (2 * width)
                            middle: T.let[T.int32] = T.min(start + width, length)
                            end: T.let[T.int32] = T.min(start + 2 * width, length)
                            if k == start:
                                cursors[v, 0] = start
                                cursors[v, 1] = middle
                            left[v] = positions[v, source, T.min(cursors[v, 0], length - 1)]
                            right[v] = positions[v, source, T.min(cursors[v, 1], length - 1)]
                            if cursors[v, 0] < middle and (
                                cursors[v, 1] >= end or not before(x[v, right[v]], x[v, left[v]])
                            ):
                                positions[v, 1 - source, k] = left[v]
                                cursors[v, 0] = cursors[v, 0] + 1
                            else:
                                positions[v, 1 - source, k] = right[v]
                                cursors[v, 1] = cursors[v, 1] + 1
                    for k in T.serial(kept):
                        values[v, k] = x[v, positions[v, levels % 2, k]]
                        indices[v, k] = T.Cast(index_dtype, positions[v, levels % 2, k])

    return kernel
