"""Tables of bytes by the byte permutations of AVX-512."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.borders import NO_BORDER, Border, border_fills, sequence
from qcompiler.targets.cpu.shapes import divisor_at_most, loop_kind
from qcompiler.targets.cpu.vectors import ramp
from qcompiler.targets.workload import mark_scheduled

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
    total = prod(shape)
    x = tirx.decl_buffer(tuple(shape), "uint8", name="x")
    table = tirx.decl_buffer((256,), "uint8", name="table")
    if border == NO_BORDER:  # one row of all
        rows, length, outer = 1, total, tuple(shape)
    else:
        n, h, w, c = shape
        rows, length, outer = n * h, w * c, border.around((n, h, w, c))
    out = tirx.decl_buffer(outer, "uint8", name="out")
    flat_x = tirx.decl_buffer((total,), "uint8", name="flat_x", data=x.data)
    flat_out = tirx.decl_buffer((prod(outer),), "uint8", name="flat_out", data=out.data)
    chunks = length // LOOKUP
    per_task = divisor_at_most(chunks, 64) if chunks else 1
    row, task, step, rest = (tirx.Var(name, "int32") for name in ("row", "task", "step", "rest"))
    source, target = row * length, row * length
    if border != NO_BORDER:
        target = border.row_start((n, h, w, c), row)
    many = loop_kind(total // 16)
    stores: list[tirx.Stmt] = []
    if chunks:
        offset = (task * per_task + step) * LOOKUP
        index = tirx.BufferLoad(flat_x, [ramp(source + offset, LOOKUP)])
        store = tirx.BufferStore(flat_out, looked_up(table, index), [ramp(target + offset, LOOKUP)])
        inner = tirx.For(step, 0, per_task, tirx.ForKind.SERIAL, store)
        kind = many if rows == 1 else tirx.ForKind.SERIAL
        stores.append(tirx.For(task, 0, chunks // per_task, kind, inner))
    if length % LOOKUP:
        position = rest + chunks * LOOKUP
        value = tirx.BufferLoad(table, [tirx.BufferLoad(flat_x, [source + position]).astype("int32")])
        store = tirx.BufferStore(flat_out, value, [target + position])
        stores.append(tirx.For(rest, 0, length % LOOKUP, tirx.ForKind.SERIAL, store))
    body = tirx.For(row, 0, rows, many if rows > 1 else tirx.ForKind.SERIAL, sequence(stores))
    views = [tirx.DeclBuffer(flat_x, data=x.data), tirx.DeclBuffer(flat_out, data=out.data)]
    fills = border_fills(flat_out, tuple(shape), border) if border != NO_BORDER else []
    whole = tirx.SeqStmt([*views, *fills, body])
    return mark_scheduled(tirx.PrimFunc([x, table, out], whole).with_attr("tirx.noalias", True))
