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
from qcompiler.targets.borders import NO_BORDER, Border
from qcompiler.targets.cpu import tables
from qcompiler.targets.cpu.storage import SIGNED
from qcompiler.targets.cpu.vectors import Body, broadcast, ramp

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
    return tables.table_lookup(
        shape, "int8", border, width=VECTOR_BYTES, of_task=256, cycles=prod(shape) // 2,
        chunk=lambda row, offset: _lookup(row, offset, VECTOR_BYTES),
        rest=lambda row, first, count: _lookup(row, tirx.const(first, "int32"), count),
    )  # fmt: skip


def _lookup(row: tables.Row, offset: Expr, count: int) -> tirx.Stmt:
    """Looks up ``count`` bytes, 16 or fewer."""
    body = Body()
    index = memory.load(body, row.x, [], row.source + offset, count, VECTOR_BYTES)
    result: Expr | None = None
    for quarter in range(256 // QUARTER):
        registers = [
            tirx.BufferLoad(
                row.table, [ramp(tirx.const(quarter * QUARTER + k * VECTOR_BYTES, "int32"), VECTOR_BYTES)]
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
    memory.store(body, row.out, [], row.target + offset, count, result)
    return tirx.SeqStmt(body.statements)
