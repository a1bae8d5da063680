"""StoreBfloat16: float layers write bfloat16 where only bfloat16 is read.

Before::

    y = qc.float_conv2d(x, w, b, precision="bfloat16", out_dtype="float32")
    z = qc.float_conv2d(qc.to_bfloat16(y), ..., precision="bfloat16")
    s = qc.float_conv2d(t, ..., y, precision="bfloat16")

After::

    y = qc.float_conv2d(x, w, b, precision="bfloat16", out_dtype="uint16")
    z = qc.float_conv2d(y, ..., precision="bfloat16")
    s = qc.float_conv2d(t, ..., y, precision="bfloat16")

A residual of a bfloat16 layer is read as bfloat16, which rounds it; a tensor that anything else reads stays float32.
"""

from __future__ import annotations

import tvm
from tvm import relax

from qcompiler import operators
from qcompiler.operators import BFLOAT16_BITS, FLOAT_LAYERS
from qcompiler.passes.graph import Rewriter, op_name

RESIDUAL = 3
"""Position of a float layer's residual among its operands."""


class StoreBfloat16:
    """Rounds where a layer writes instead of where the next one reads."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _StoreBfloat16(module).run()


class _StoreBfloat16(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.readers: dict[relax.Var, int] = {}
        """How often a variable is read as bfloat16."""

    def prepare(self) -> None:
        for value in self.old.values():
            for read in _reads(value):
                self.readers[read] = self.readers.get(read, 0) + 1

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        new = self.replaced(value)
        if op_name(value) == "qc.to_bfloat16" and str(new.args[0].ty.dtype) == BFLOAT16_BITS:
            return new.args[0]
        if op_name(value) in FLOAT_LAYERS and self.readers.get(var, 0) == self.uses.get(var, 0) > 0:
            attrs = {**{str(k): v for k, v in value.attrs.items()}, "out_dtype": BFLOAT16_BITS}
            return operators.call(op_name(value), list(new.args), **attrs)
        return new


def _reads(value: relax.Expr) -> list[relax.Var]:
    """The variables that an expression reads as bfloat16."""
    if op_name(value) == "qc.to_bfloat16":
        return [value.args[0]]
    if op_name(value) not in FLOAT_LAYERS or str(value.attrs["precision"]) != "bfloat16":
        return []
    return [a for a in value.args[RESIDUAL:] if isinstance(a, relax.Var)]
