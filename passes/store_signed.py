"""StoreSigned: activations lie in memory as q - 128, for targets whose instructions multiply signed numbers.

Before::

    y = qc.conv2d(x: u8, ...) -> u8
    p = nn.pad(y, 3) -> u8
    z = qc.conv2d(p, ...) -> u8
    return z

After::

    x' = astype(astype(x, i16) - 128, i8)
    y = qc.conv2d(x': i8, ..., storage="int8") -> i8
    p = nn.pad(y, -125) -> i8
    z = qc.conv2d(p, ..., storage="int8") -> i8
    return astype(astype(z, i16) + 128, u8)

The operators' attributes and constants stay in terms of q: an int8 tensor is one whose elements are stored as q - 128,
and the kernels know it by its dtype. What moves bytes moves these; tensors that come from elsewhere or go elsewhere are
converted at the border.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Constant

from qcompiler import operators
from qcompiler.operators import INTEGER_OPERATORS
from qcompiler.passes.graph import Rewriter, array, constant, dtype, is_tensor, op_name

OFFSET = 128

_ACTIVATIONS = {
    "qc.conv2d": (0, 4),
    "qc.dense": (0, 4),
    "qc.add": (0, 1),
    "qc.mul": (0, 1),
    "qc.quantize": (),
}
"""Positions of the activations among the operands; of the other integer operators it is the first."""

MOVEMENT = frozenset(
    {
        "relax.concat",
        "relax.image.resize2d",
        "relax.nn.pad",
        "relax.permute_dims",
        "relax.reshape",
        "relax.split",
        "relax.strided_slice",
    }
)
"""Operators that only move elements."""


def activations(call: relax.Call) -> tuple[int, ...]:
    """Positions of the activations among the operands of an integer operator; some may be left out of the call."""
    return _ACTIVATIONS.get(str(call.op.name), (0,))


class StoreSigned:
    """Stores the activations of integer operators as q - 128."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _StoreSigned(module).run()


class _StoreSigned(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.signed: dict[relax.Var, relax.Expr] = {}
        """Stored forms of old tensors that are not made by integer operators."""
        self.unsigned: dict[relax.Var, relax.Expr] = {}

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        name = op_name(value)
        if name in INTEGER_OPERATORS:
            return self._integer(name, value)
        if name in MOVEMENT and any(self._is_stored(a) for a in _tensors(value.args[0], self)):
            return self._moved(value)
        if isinstance(value, relax.TupleGetItem | relax.Tuple):
            return super().replaced(value)
        return self.replaced(value)

    def replaced(self, expr: relax.Expr) -> relax.Expr:
        """As of any rewriter, but that what is stored as q - 128 is converted back."""
        if isinstance(expr, relax.Var) and self._is_stored(expr):
            if expr not in self.unsigned:
                self.unsigned[expr] = self._converted(super().replaced(expr), OFFSET, "uint8")
            return self.unsigned[expr]
        return super().replaced(expr)

    def _is_stored(self, old: relax.Expr) -> bool:
        """Whether an old tensor is stored as q - 128 now."""
        new = Rewriter.replaced(self, old) if isinstance(old, relax.Var) else old
        return (
            isinstance(old, relax.Var) and is_tensor(new) and dtype(old) == "uint8" and dtype(new) == "int8"
        )

    def stored(self, old: relax.Expr) -> relax.Expr:
        """The stored form of an old tensor of activations."""
        if isinstance(old, Constant):
            return constant((array(old).astype(np.int16) - OFFSET).astype(np.int8))
        if self._is_stored(old):
            return Rewriter.replaced(self, old)
        if not isinstance(old, relax.Var):
            return self._converted(Rewriter.replaced(self, old), -OFFSET, "int8")
        if old not in self.signed:
            self.signed[old] = self._converted(Rewriter.replaced(self, old), -OFFSET, "int8")
        return self.signed[old]

    def _converted(self, new: relax.Expr, offset: int, to: str) -> relax.Expr:
        wide = relax.op.add(relax.op.astype(new, "int16"), relax.const(offset, "int16"))
        return self.emit(relax.op.astype(self.emit(wide), to))

    def _integer(self, name: str, call: relax.Call) -> relax.Expr:
        positions = activations(call)
        args = [
            self.stored(a) if k in positions else Rewriter.replaced(self, a) for k, a in enumerate(call.args)
        ]
        attrs = {str(k): v for k, v in call.attrs.items()}
        return operators.call(name, args, **{**attrs, "storage": "int8"})

    def _moved(self, call: relax.Call) -> relax.Expr:
        first = call.args[0]
        source = self.was(first)
        moved = (
            relax.Tuple([self.stored(f) for f in source.fields])
            if isinstance(source, relax.Tuple)
            else self.stored(first)
        )
        if op_name(call) == "relax.nn.pad":
            widths = [int(w) for w in call.attrs.pad_width]
            return relax.op.nn.pad(
                moved, widths, str(call.attrs.pad_mode), float(call.attrs.pad_value) - OFFSET
            )
        rest = [Rewriter.replaced(self, a) for a in call.args[1:]]
        return self.builder.normalize(relax.Call(call.op, [moved, *rest], call.attrs, call.ty_args))


def _tensors(first: relax.Expr, rewriter: Rewriter) -> list[relax.Expr]:
    source = rewriter.was(first)
    return list(source.fields) if isinstance(source, relax.Tuple) else [first]
