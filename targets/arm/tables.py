"""Tables of bytes by ``tbl`` and ``tbx``."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.arm import memory
from qcompiler.targets.arm.intrinsics import INT8X16, VECTOR_BYTES
from qcompiler.targets.borders import NO_BORDER, Border, border_fills, sequence
from qcompiler.targets.cpu.shapes import divisor_at_most, loop_kind
from qcompiler.targets.cpu.storage import SIGNED
from qcompiler.targets.cpu.vectors import Body, broadcast, ramp
from qcompiler.targets.workload import mark_scheduled

REGISTERS = 4
"""Registers of a table that one instruction looks into."""

QUARTER = REGISTERS * VECTOR_BYTES
"""Elements that they hold."""


def stored_table(table: NDArray[Any]) -> NDArray[np.int8]:
    """The table of ``qc.lut`` with stored results, in the order of the bytes of stored indices."""
    order = np.arange(256) ^ SIGNED.offset  # the byte of q - 128 is q with its top bit flipped
    stored: NDArray[np.int8] = (table.astype(np.int16)[order] - SIGNED.offset).astype(np.int8)
    return stored


def table_lookup(shape: Sequence[int], border: Border = NO_BORDER) -> tirx.PrimFunc:
    """``qc.lut`` with a table of ``stored_table``: ``tbl`` gives 0 beyond its registers, ``tbx`` leaves what is there.

    Args:
        shape: of the input, int8.
        border: what is written around an NHWC output.
    """
    total = prod(shape)
    x = tirx.decl_buffer(tuple(shape), "int8", name="x")
    table = tirx.decl_buffer((256,), "int8", name="table")
    if border == NO_BORDER:  # one row of all
        rows, length, outer = 1, total, tuple(shape)
    else:
        n, h, w, c = shape
        rows, length, outer = n * h, w * c, border.around((n, h, w, c))
    out = tirx.decl_buffer(outer, "int8", name="out")
    flat_x = tirx.decl_buffer((total,), "int8", name="flat_x", data=x.data)
    flat_out = tirx.decl_buffer((prod(outer),), "int8", name="flat_out", data=out.data)
    row, task, step = (tirx.Var(name, "int32") for name in ("row", "task", "step"))
    source, target = row * length, row * length
    if border != NO_BORDER:
        target = border.row_start((n, h, w, c), row)
    chunks = length // VECTOR_BYTES
    per_task = divisor_at_most(chunks, 256) if chunks else 1
    many = loop_kind(total // 2)
    statements: list[tirx.Stmt] = []
    if chunks:
        inner = _lookup(
            flat_x, table, flat_out, source, target, (task * per_task + step) * VECTOR_BYTES, VECTOR_BYTES
        )
        loop = tirx.For(step, 0, per_task, tirx.ForKind.SERIAL, inner)
        kind = many if rows == 1 else tirx.ForKind.SERIAL
        statements.append(tirx.For(task, 0, chunks // per_task, kind, loop))
    if length % VECTOR_BYTES:
        first = tirx.const(chunks * VECTOR_BYTES, "int32")
        statements.append(_lookup(flat_x, table, flat_out, source, target, first, length % VECTOR_BYTES))
    body = tirx.For(row, 0, rows, many if rows > 1 else tirx.ForKind.SERIAL, sequence(statements))
    views = [tirx.DeclBuffer(flat_x, data=x.data), tirx.DeclBuffer(flat_out, data=out.data)]
    fills = border_fills(flat_out, tuple(shape), border) if border != NO_BORDER else []
    whole = tirx.SeqStmt([*views, *fills, body])
    return mark_scheduled(tirx.PrimFunc([x, table, out], whole).with_attr("tirx.noalias", True))


def _lookup(
    x: tirx.Buffer, table: tirx.Buffer, out: tirx.Buffer, source: Expr, target: Expr, offset: Expr, count: int
) -> tirx.Stmt:  # fmt: skip
    """Looks up ``count`` bytes, 16 or fewer."""
    body = Body()
    index = memory.load(body, x, [], source + offset, count, VECTOR_BYTES)
    result: Expr | None = None
    for quarter in range(256 // QUARTER):
        registers = [
            tirx.BufferLoad(
                table, [ramp(tirx.const(quarter * QUARTER + k * VECTOR_BYTES, "int32"), VECTOR_BYTES)]
            )
            for k in range(REGISTERS)
        ]
        if result is None:
            result = tirx.call_llvm_pure_intrin(INT8X16, "llvm.aarch64.neon.tbl4.v16i8", *registers, index)
        else:
            index = index - broadcast(QUARTER, "int8", VECTOR_BYTES)
            result = tirx.call_llvm_pure_intrin(
                INT8X16, "llvm.aarch64.neon.tbx4.v16i8", result, *registers, index
            )
        result = body.name(result, "found")
    assert result is not None
    memory.store(body, out, [], target + offset, count, result)
    return tirx.SeqStmt(body.statements)
