"""Canonicalize: one form for everything the later passes match.

Before::

    s = astype(scales_float64, "float32")
    p = max_pool2d(x), zeros_like(p);  y = (p, zeros)[0]
    r = relu6(y)
    a, b = split(r, 2)
    m = full_like(r, -inf)
    t = take(table, ids, mode="fast")

After::

    p = max_pool2d(x)
    r = clip(p, 0, 6)
    a = strided_slice(r, ...);  b = strided_slice(r, ...)
    m = broadcast_to(-inf, ...)
    t = take(table, ids, mode="wrap")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Constant

from qcompiler.passes.graph import Rewriter, array, constant, dims, dtype, op_name


class Canonicalize:
    """Folds operators on constants, resolves tuples, and gives operators with two spellings one."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _Canonicalize(module).run()


_FOLDED: dict[str, Callable[[relax.Call, NDArray[Any]], NDArray[Any]]] = {
    "relax.astype": lambda call, x: x.astype(dtype(call)),
    "relax.reshape": lambda call, x: x.reshape(dims(call)),
    "relax.flatten": lambda call, x: x.reshape(dims(call)),
    "relax.expand_dims": lambda call, x: x.reshape(dims(call)),
    "relax.squeeze": lambda call, x: x.reshape(dims(call)),
    "relax.broadcast_to": lambda call, x: np.broadcast_to(x, dims(call)),
    "relax.permute_dims": lambda call, x: np.transpose(
        x, None if call.attrs.axes is None else [int(a) for a in call.attrs.axes]
    ),
}


def _is_infinite(value: relax.Expr) -> bool:
    return isinstance(value, Constant) and not np.isfinite(array(value)).all()


class _Canonicalize(Rewriter):
    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        new = self.replaced(value)
        name = op_name(value)
        if name in _FOLDED and isinstance(new.args[0], Constant):
            return constant(_FOLDED[name](value, array(new.args[0])))
        if name == "relax.nn.relu6":
            return relax.op.clip(new.args[0], 0, 6)
        if name in ("relax.reshape", "relax.flatten", "relax.squeeze", "relax.expand_dims"):
            if dims(value) == dims(new.args[0]):
                return new.args[0]
            return relax.op.reshape(new.args[0], dims(value))
        if name == "relax.astype" and dtype(value) == dtype(new.args[0]):
            return new.args[0]
        if name == "relax.concat" and isinstance(new.args[0], relax.Tuple) and len(new.args[0].fields) == 1:
            return new.args[0].fields[0]
        if name == "relax.split":
            return self._slices(new, value)
        if name in ("relax.full", "relax.full_like") and _is_infinite(new.args[1]):
            # TVM's legalization fails on infinities, which masks are made of.
            filling = array(new.args[1]).reshape(1).astype(dtype(value))
            return relax.op.broadcast_to(constant(filling), dims(value))
        if name == "relax.take" and value.attrs.mode == "fast":
            # Whoever runs the library may give any index; it must not read beyond the tensor, and -1 is the last.
            return relax.op.take(new.args[0], new.args[1], axis=value.attrs.axis, mode="wrap")
        if name == "relax.nn.dropout":
            return relax.Tuple([new.args[0], new.args[0]])
        if name == "relax.permute_dims" and value.attrs.axes is not None:
            axes = [int(a) for a in value.attrs.axes]
            if axes == list(range(len(axes))):
                return new.args[0]
        return new

    def _slices(self, new: relax.Call, old: relax.Call) -> relax.Expr:
        """The parts of a split, each a slice: an operator of one result, which every later pass knows."""
        axis = int(old.attrs.axis) % len(dims(new.args[0]))
        parts: list[relax.Var] = []
        first = 0
        for field in old.ty.fields:
            extent = int(field.shape[axis])
            part = relax.op.strided_slice(new.args[0], [axis], [first], [first + extent])
            parts.append(self.emit(part, f"{self.name}_{len(parts)}"))
            first += extent
        return relax.Tuple(parts)
