"""Loads and stores of any number of bytes: vectors of 16, 8, 4, 2 and 1."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.cpu.vectors import Body, broadcast, ramp, shuffle


def pieces(count: int, largest: int = 16) -> list[tuple[int, int]]:
    """``count`` as powers of two, the largest first: pairs of start and size."""
    result, start = [], 0
    while start < count:
        size = largest
        while size > count - start:
            size //= 2
        result.append((start, size))
        start += size
    return result


def load(body: Body, buffer: tirx.Buffer, index: Sequence[Expr], first: Expr, count: int, size: int) -> Expr:
    """``count`` elements from ``first`` on of the last axis, as a vector of ``size``, the rest of it zero."""
    dtype = str(buffer.dtype)
    loads = [
        body.name(tirx.BufferLoad(buffer, [*index, ramp(first + start, width)]), "part")
        for start, width in pieces(count)
    ]
    if len(loads) == 1 and count == size:
        return loads[0]
    if count < size:
        loads.append(broadcast(0, dtype, size - count) if size - count > 1 else tirx.const(0, dtype))
    return body.name(shuffle(loads, range(size)), "joined")


def store(
    body: Body, buffer: tirx.Buffer, index: Sequence[Expr], first: Expr, count: int, value: Expr
) -> None:
    """Writes the first ``count`` lanes of ``value`` from ``first`` on of the last axis."""
    lanes = int(str(value.ty.dtype).partition("x")[2])
    for start, width in pieces(count):
        part = value if (start, width) == (0, lanes) else shuffle([value], range(start, start + width))
        body.add(tirx.BufferStore(buffer, part, [*index, ramp(first + start, width)]))
