"""Which operators of a folded module stayed in float, and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import tvm
from tvm import relax

from qcompiler.operators import INTEGER_OPERATORS
from qcompiler.passes.graph import bindings, dtype, is_tensor, op_name
from qcompiler.runtime.manifest import FloatRecord

_MOVEMENT = frozenset(
    {
        "relax.reshape", "relax.permute_dims", "relax.squeeze", "relax.expand_dims", "relax.flatten",
        "qc.round_float",
    }
)  # fmt: skip
"""Operators that compute nothing, whatever the dtype."""

_NAMES = {
    "matmul": "scaled_dot_product_attention",
    "softmax": "scaled_dot_product_attention",
    "take": "embedding",
}
"""What quantization may call an operator that has another name in the module."""


def float_operators(
    module: tvm.IRModule, notes: Mapping[str, str], refused: Sequence[FloatRecord]
) -> tuple[FloatRecord, ...]:
    """The float operators of ``main`` in order.

    Args:
        module: Relax module after the phase *integer*.
        notes: reasons that the passes noted, by variable; they count where quantization gave none.
        refused: operators that quantization left in float, with its reasons; they explain those of the module that
            they became, by operator and place.
    """
    records = []
    for binding in bindings(module):
        name = op_name(binding.value)
        if not name or name in INTEGER_OPERATORS or not is_tensor(binding.var):
            continue
        if name in _MOVEMENT or "float" not in dtype(binding.var):
            continue
        operator = name.removeprefix("relax.").removeprefix("nn.")
        place = binding.var.name
        reason = _refusal(operator, place, refused) or notes.get(place) or _consequence(binding)
        records.append(FloatRecord(operator, place, reason))
    return tuple(records)


def _refusal(operator: str, place: str, refused: Sequence[FloatRecord]) -> str | None:
    """The reason that quantization gave for this operator: the first cause, where there is one.

    Of the records whose module is the operator's or around it, one of the same operator counts before others, and the
    innermost module's before those around it.
    """
    names = {operator, _NAMES.get(operator, operator)}
    best: tuple[tuple[bool, int], str] | None = None
    for record in refused:
        readable = record.place.split(",")[0].replace(".", "_")
        if re.fullmatch(rf"{re.escape(readable)}(\d*|_.*)", place):  # the importer numbers what has one name
            rank = (record.operator.rstrip("_") in names, len(readable))
            if best is None or rank > best[0]:
                best = rank, record.reason
    if best is not None:
        return best[1]
    return next((r.reason for r in refused if r.operator.rstrip("_") in names), None)


def _consequence(binding: relax.VarBinding) -> str:
    if any(dtype(a) == "uint8" for a in binding.value.args if isinstance(a, relax.Var) and is_tensor(a)):
        return "no integer form on its quantized input"
    return "it works on tensors that are not quantized"
