"""Tables of bytes by the byte permutations of AVX-512."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.borders import NO_BORDER, Border
from qcompiler.targets.cpu import tables
from qcompiler.targets.cpu.vectors import ramp

LOOKUP = 64
"""Bytes that one pair of byte permutations over two registers looks up."""


def looked_up(table: tirx.Buffer, index: Expr) -> Expr:
    """``LOOKUP`` bytes of a table of 256, by as many indices: two ``vpermi2b``, of which the top bit picks one."""
    quarters = [tirx.BufferLoad(table, [tirx.Ramp(q * LOOKUP, 1, LOOKUP)]) for q in range(4)]
    permute = "llvm.x86.avx512.vpermi2var.qi.512"
    low, high = (
        tirx.call_llvm_pure_intrin(f"uint8x{LOOKUP}", permute, quarters[k], index, quarters[k + 1])
        for k in (0, 2)
    )
    return tirx.Select(index >= tirx.Broadcast(tirx.const(128, "uint8"), LOOKUP), high, low)


def table_lookup(shape: Sequence[int], border: Border = NO_BORDER) -> tirx.PrimFunc:
    """``qc.lut`` by ``vpermi2b``: the table is in four registers; the top bit of an index picks a pair of them.

    Args:
        shape: of the input, uint8. The table has 256 bytes.
        border: what is written around an NHWC output.
    """
    return tables.table_lookup(
        shape, "uint8", border, width=LOOKUP, of_task=64, cycles=prod(shape) // 16, chunk=_chunk, rest=_rest
    )


def _chunk(row: tables.Row, offset: Expr) -> tirx.Stmt:
    index = tirx.BufferLoad(row.x, [ramp(row.source + offset, LOOKUP)])
    return tirx.BufferStore(row.out, looked_up(row.table, index), [ramp(row.target + offset, LOOKUP)])


def _rest(row: tables.Row, first: int, count: int) -> tirx.Stmt:
    rest = tirx.Var("rest", "int32")
    position = rest + first
    value = tirx.BufferLoad(row.table, [tirx.BufferLoad(row.x, [row.source + position]).astype("int32")])
    store = tirx.BufferStore(row.out, value, [row.target + position])
    return tirx.For(rest, 0, count, tirx.ForKind.SERIAL, store)
