"""Loads and stores of any number of bytes: vectors of 16, 8, 4, 2 and 1."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr, PointerType, PrimType

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


def hidden_offset(body: Body, offset: Expr) -> Expr:
    """``offset``, 0 or more, as int64 of which LLVM knows nothing more; a few instructions.

    Offsets that lie a constant apart would be folded into one register and immediates.
    """
    # The complement is never zero, which TVM takes for a null pointer in a reinterpretation.
    bits = tirx.reinterpret("float64", tirx.bitwise_not(tirx.Cast("int64", offset)))
    fenced = tirx.call_llvm_pure_intrin("float64", "llvm.arithmetic.fence", bits)
    return body.name(tirx.bitwise_not(tirx.reinterpret("int64", fenced)), "offset")


def hidden_view(body: Body, buffer: tirx.Buffer, first: Expr) -> tirx.Buffer:
    """A flat int8 buffer from element ``first`` on, by a pointer that LLVM does not take apart; no instruction.

    Such a pointer stays a register of its own in every address, so a load with :func:`hidden_offset` adds two registers.
    """
    kind = PointerType(PrimType("int8"))
    plain = tirx.address_of(tirx.BufferLoad(buffer, [first]))
    pointer = tirx.Var("pointer", kind)
    body.add(tirx.Bind(pointer, tirx.call_llvm_pure_intrin(kind, "llvm.launder.invariant.group", plain)))
    view = tirx.decl_buffer(buffer.shape, "int8", name="view", data=pointer)
    body.add(tirx.DeclBuffer(view, data=pointer))
    return view


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
