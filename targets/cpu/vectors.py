"""Helpers of kernels that are written out in vectors."""

from __future__ import annotations

from collections.abc import Sequence

from tvm import tirx
from tvm.ir import Expr


class Body:
    """Statements of a basic block in which every value has a name."""

    def __init__(self) -> None:
        self.statements: list[tirx.Stmt] = []

    def name(self, value: Expr, hint: str) -> Expr:
        var = tirx.Var(hint, str(value.ty.dtype))
        self.statements.append(tirx.Bind(var, value))
        return var

    def add(self, statement: tirx.Stmt) -> None:
        self.statements.append(statement)


def broadcast(value: float, dtype: str, lanes: int) -> Expr:
    return tirx.Broadcast(tirx.const(value, dtype), lanes)


def shuffle(vectors: Sequence[Expr], order: Sequence[int]) -> Expr:
    return tirx.Shuffle(list(vectors), [tirx.const(k, "int32") for k in order])


def ramp(start: Expr, count: int) -> Expr:
    """Indices of ``count`` adjacent elements."""
    return tirx.Ramp(start, 1, count) if count > 1 else start
