"""LiftConstants: large constants are arguments of the main function, and stand in a file of their own.

Before::

    def main(x: Tensor[1, 64]):
        kernel(x, constant int8[64, 4096], y)

After::

    def main(x: Tensor[1, 64], constant_0: Tensor[64, 4096]):
        kernel(x, constant_0, y)

TVM keeps constants in the library's data and copies them twice when it loads it. Arguments are tensors over memory that
is mapped from a file: nothing is copied, a page is read when it is first needed, and processes with the same model
share it. The pass comes last, after the checks of arguments were generated: constants need none. Small constants stay,
since an argument costs some nanoseconds a run; but not those that ``main`` returns, so that whoever runs it can tell
an output that is the model's own memory.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Constant, GlobalVar

from qcompiler.passes.graph import MAIN, array

MIN_BYTES = 4096
"""A page of memory."""


class LiftConstants:
    """Takes large constants out of ``main``.

    Attributes:
        constants: what the new parameters stand for, in their order; equal constants share one.
    """

    def __init__(self, min_bytes: int = MIN_BYTES) -> None:
        self.min_bytes = min_bytes
        self.constants: list[NDArray[Any]] = []

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        lift = _Lift(self.min_bytes)
        main = module[MAIN]
        blocks = [
            relax.BindingBlock([relax.VarBinding(b.var, lift.replaced(b.value)) for b in block.bindings])
            for block in main.body.blocks
        ]
        body = relax.SeqExpr(blocks, lift.replaced(main.body.body))
        self.constants = lift.constants
        result = tvm.IRModule(module.functions, attrs=module.attrs)
        result[MAIN] = relax.Function(
            [*main.params, *lift.parameters], body, main.ret_ty, main.is_pure, main.attrs
        )
        return result


class _Lift:
    def __init__(self, min_bytes: int) -> None:
        self.min_bytes = min_bytes
        self.parameters: list[relax.Var] = []
        self.constants: list[NDArray[Any]] = []
        self.known: dict[tuple[str, tuple[int, ...], bytes], relax.Var] = {}

    def replaced(self, expr: relax.Expr) -> relax.Expr:
        """``expr`` with parameters for constants: large ones where a kernel reads them, all others elsewhere."""
        if isinstance(expr, Constant):
            return self.parameter(expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.replaced(field) for field in expr.fields])
        if isinstance(expr, relax.Call):
            least = self.min_bytes if isinstance(expr.op, GlobalVar) else 0
            args = [self.parameter(arg, least) if isinstance(arg, Constant) else arg for arg in expr.args]
            return relax.Call(expr.op, args, expr.attrs, expr.ty_args, expr.span)
        return expr

    def parameter(self, constant: Constant, least: int = 0) -> relax.Expr:
        """A parameter for a tensor of at least so many bytes; any other constant as it is."""
        if not isinstance(constant.ty, relax.TensorType):
            return constant
        values = np.asarray(array(constant), order="C")
        if values.nbytes < least:
            return constant
        key = (str(values.dtype), values.shape, hashlib.sha256(values.tobytes()).digest())
        if key not in self.known:
            self.known[key] = relax.Var(f"constant_{len(self.constants)}", constant.ty)
            self.parameters.append(self.known[key])
            self.constants.append(values)
        return self.known[key]
