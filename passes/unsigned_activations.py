"""UseUnsignedActivations: signed 8-bit activations become unsigned ones.

Before::

    q = quantize(x, s, z, out_dtype="int8")
    y = dequantize(q, s, z)

After::

    q = quantize(x, s, z + 128, out_dtype="uint8")
    y = dequantize(q, s, z + 128)

``q - 128`` and ``q`` stand for the same real number, so nothing changes but the storage. Constants (weights) stay signed.
"""

from __future__ import annotations

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Constant

from qcompiler.passes.graph import Rewriter, array, constant, dtype, op_name

SHIFT = 128


class UseUnsignedActivations:
    """Stores every quantized activation as uint8."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _UseUnsignedActivations(module).run()


class _UseUnsignedActivations(Rewriter):
    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        name = op_name(value)
        if name == "relax.quantize" and dtype(value) == "int8" and not isinstance(value.args[0], Constant):
            x, scale, zero = self.replaced(value).args
            shifted = constant(array(zero).astype(np.int32) + np.int32(SHIFT))
            return relax.op.quantize(x, scale, shifted, axis=value.attrs.axis, out_dtype="uint8")
        if (
            name == "relax.dequantize"
            and dtype(value.args[0]) == "int8"
            and not isinstance(value.args[0], Constant)
        ):
            x, scale, zero = self.replaced(value).args
            if dtype(x) == "uint8":
                shifted = constant(array(zero).astype(np.int32) + np.int32(SHIFT))
                return relax.op.dequantize(x, scale, shifted, axis=value.attrs.axis, out_dtype="float32")
        return None
