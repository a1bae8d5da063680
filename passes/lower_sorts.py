"""LowerSorts: sorts become a kernel of their own on CPUs.

Before::

    y = topk(x: f32[2, 5, 7], k=3, axis=1, ret_type="both")

After::

    lv = reshape(permute_dims(x, (0, 2, 1)), (14, 5))
    lv1 = call_tir(order_rows, (lv,)) -> f32[14, 3], i64[14, 3]
    y = permute_dims(reshape(lv1[0], (2, 7, 3)), (0, 2, 1)), permute_dims(reshape(lv1[1], ...), ...)
"""

from __future__ import annotations

from math import prod

import tvm
from tvm import relax

from qcompiler.passes.graph import Rewriter, dims, dtype, op_name
from qcompiler.targets.cpu.sorts import order_rows

SORTS = frozenset({"relax.sort", "relax.argsort", "relax.topk"})

POSITIONS = "int32"
"""Of positions that nothing reads."""


class LowerSorts:
    """Lowers ``sort``, ``argsort`` and ``topk``."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _Rewriter(module).run()


class _Rewriter(Rewriter):
    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        name, attrs = op_name(value), getattr(value, "attrs", None)
        if name not in SORTS:
            return None
        assert attrs is not None, value
        if name == "relax.sort":
            return self.ordered(value, None, POSITIONS, bool(attrs.descending))[0]
        if name == "relax.argsort":
            return self.ordered(value, None, str(attrs.dtype), bool(attrs.descending))[1]
        values, indices = self.ordered(value, int(attrs.k), str(attrs.dtype), bool(attrs.largest))
        one = {"values": values, "indices": indices}
        return one.get(str(attrs.ret_type), relax.Tuple([values, indices]))

    def ordered(
        self, call: relax.Call, kept: int | None, positions: str, descending: bool
    ) -> tuple[relax.Expr, relax.Expr]:
        """The first ``kept`` values along the call's axis in order, all if None or less than 1; and where they were."""
        x = self.replaced(call.args[0])
        shape, axis = dims(x), int(call.attrs.axis)
        last = len(shape) - 1
        swapped = list(range(len(shape)))
        swapped[axis], swapped[last] = swapped[last], swapped[axis]
        moved = tuple(shape[a] for a in swapped)
        length = moved[last]
        count = length if kept is None or kept < 1 else min(kept, length)
        rows = prod(moved[:last])
        kernel = order_rows(rows, length, count, dtype(x), positions, descending)
        if swapped[last] != last:
            x = self.emit(relax.op.permute_dims(x, swapped))
        x = self.emit(relax.op.reshape(x, (rows, length)))
        types = [relax.TensorType((rows, count), t) for t in (dtype(x), positions)]
        both = self.emit(relax.call_tir(self.builder.add_func(kernel, "order_rows"), [x], out_ty=types))
        results = []
        for k in range(2):
            result = self.emit(relax.op.reshape(relax.TupleGetItem(both, k), (*moved[:last], count)))
            if swapped[last] != last:
                result = self.emit(relax.op.permute_dims(result, swapped))
            results.append(result)
        return results[0], results[1]
