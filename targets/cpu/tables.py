"""The frame of kernels that look bytes up in a table of 256: rows, tasks, and the border around the output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

from tvm import tirx
from tvm.ir import Expr

from qcompiler.targets.borders import NO_BORDER, Border, border_fills, sequence
from qcompiler.targets.cpu.shapes import divisor_at_most, loop_kind
from qcompiler.targets.workload import mark_scheduled


@dataclass(frozen=True)
class Row:
    """Bytes that are looked up one after the other.

    Attributes:
        x: all indices, flat.
        table: the 256 results.
        out: all results, flat.
        source: where the row begins in ``x``.
        target: where it begins in ``out``.
    """

    x: tirx.Buffer
    table: tirx.Buffer
    out: tirx.Buffer
    source: Expr
    target: Expr


def table_lookup(
    shape: Sequence[int], dtype: str, border: Border, *, width: int, of_task: int, cycles: int,
    chunk: Callable[[Row, Expr], tirx.Stmt], rest: Callable[[Row, int, int], tirx.Stmt],
) -> tirx.PrimFunc:  # fmt: skip
    """A kernel of ``qc.lut``.

    Args:
        shape: of the input.
        dtype: of a stored activation.
        border: what is written around an NHWC output.
        width: bytes that one instruction, or the few that stand for it, looks up.
        of_task: as many times ``width`` bytes are a task, at most.
        cycles: what the kernel takes on one core, about.
        chunk: looks up ``width`` bytes of a row, from a place on.
        rest: looks up the last ones of a row, fewer than ``width``: from where on, and how many.
    """
    total = prod(shape)
    x = tirx.decl_buffer(tuple(shape), dtype, name="x")
    table = tirx.decl_buffer((256,), dtype, name="table")
    if border == NO_BORDER:  # one row of all
        rows, length, outer = 1, total, tuple(shape)
    else:
        n, h, w, c = shape
        rows, length, outer = n * h, w * c, border.around((n, h, w, c))
    out = tirx.decl_buffer(outer, dtype, name="out")
    flat_x = tirx.decl_buffer((total,), dtype, name="flat_x", data=x.data)
    flat_out = tirx.decl_buffer((prod(outer),), dtype, name="flat_out", data=out.data)
    number, task, step = (tirx.Var(name, "int32") for name in ("row", "task", "step"))
    source = target = number * length
    if border != NO_BORDER:
        target = border.row_start((n, h, w, c), number)
    row = Row(flat_x, table, flat_out, source, target)
    chunks = length // width
    per_task = divisor_at_most(chunks, of_task) if chunks else 1
    many = loop_kind(cycles)
    statements: list[tirx.Stmt] = []
    if chunks:
        inner = tirx.For(step, 0, per_task, tirx.ForKind.SERIAL, chunk(row, (task * per_task + step) * width))
        kind = many if rows == 1 else tirx.ForKind.SERIAL
        statements.append(tirx.For(task, 0, chunks // per_task, kind, inner))
    if length % width:
        statements.append(rest(row, chunks * width, length % width))
    body = tirx.For(number, 0, rows, many if rows > 1 else tirx.ForKind.SERIAL, sequence(statements))
    views = [tirx.DeclBuffer(flat_x, data=x.data), tirx.DeclBuffer(flat_out, data=out.data)]
    fills = border_fills(flat_out, tuple(shape), border) if border != NO_BORDER else []
    whole = tirx.SeqStmt([*views, *fills, body])
    return mark_scheduled(tirx.PrimFunc([x, table, out], whole).with_attr("tirx.noalias", True))
