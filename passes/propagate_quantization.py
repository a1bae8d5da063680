"""PropagateQuantization: operators that move bytes, or take the greater of two, work on the bytes.

Before::

    y = reshape(dequantize(q, s, z))
    p = quantize(concat(dequantize(a, s1, z1), dequantize(b, s2, z2)), s, z)

After::

    y = dequantize(reshape(q), s, z)
    p = concat(quantize(dequantize(a, s1, z1), s, z), quantize(dequantize(b, s2, z2), s, z))

Dequantize moves down through what commutes with it, quantize moves up, and where the two meet with the same
parameters both vanish.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax

from qcompiler import operators
from qcompiler.passes.graph import Rewriter, dims, dtype, ints, op_name
from qcompiler.passes.quantized import Affine, dequantize, dequantized, per_tensor, quantize


class PropagateQuantization:
    """Moves dequantize down and quantize up through what commutes with them."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _PropagateQuantization(module).run()


def _same(call: relax.Call, x: relax.Expr, _affine: Affine) -> relax.Expr:
    return relax.Call(call.op, [x, *call.args[1:]], call.attrs, call.ty_args)


def _max_pool2d(call: relax.Call, x: relax.Expr, _affine: Affine) -> relax.Expr | None:
    a = call.attrs
    if a.layout != "NCHW" or a.out_layout != "NCHW":
        return None
    return operators.call(
        "qc.max_pool2d", [x], pool_size=list(ints(a.pool_size)), strides=list(ints(a.strides)),
        padding=list(ints(a.padding)), dilation=list(ints(a.dilation)), layout="NCHW", out_size=list(dims(call)[2:]),
    )  # fmt: skip


def _pad(call: relax.Call, x: relax.Expr, affine: Affine) -> relax.Expr | None:
    mode = str(call.attrs.pad_mode)
    if mode != "constant":
        return _same(call, x, affine)
    value = float(call.attrs.pad_value)
    # Exact only where the fill has a byte of its own.
    q = round(value / affine.scale) + affine.zero_point
    if not 0 <= q <= 255 or (q - affine.zero_point) * affine.scale != value:
        return None
    return relax.op.nn.pad(x, list(ints(call.attrs.pad_width)), mode, float(q))


def _resize2d(call: relax.Call, x: relax.Expr, affine: Affine) -> relax.Expr | None:
    return _same(call, x, affine) if str(call.attrs.method) == "nearest_neighbor" else None


_COMMUTING: dict[str, Callable[[relax.Call, relax.Expr, Affine], relax.Expr | None]] = {
    "relax.reshape": _same,
    "relax.permute_dims": _same,
    "relax.strided_slice": _same,
    "relax.broadcast_to": _same,
    "relax.split": _same,
    "relax.flip": _same,
    "relax.repeat": _same,
    "relax.tile": _same,
    "relax.nn.pad": _pad,
    "relax.nn.max_pool2d": _max_pool2d,
    "relax.image.resize2d": _resize2d,
}
"""Operators that give the same on bytes as on the numbers that the bytes stand for, and the form they have there."""

_UPWARD = frozenset({"relax.reshape", "relax.permute_dims", "relax.strided_slice", "relax.broadcast_to"})
"""Those that a quantize node may pass on its way up."""


class _PropagateQuantization(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.tuples: dict[relax.Var, Affine] = {}
        """Parameters of tuples of bytes, which are dequantized field by field."""

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        new = self.replaced(value)
        name = op_name(new)
        if name in _COMMUTING:
            return self._down(new, _COMMUTING[name])
        if name == "relax.concat":
            return self._concat(new)
        if isinstance(new, relax.TupleGetItem):
            return self._field(new)
        if name == "relax.quantize" and dtype(new) == "uint8":
            affine = per_tensor(new)
            if affine is not None:
                return self._quantized(new.args[0], affine)
        return new

    def _down(
        self, call: relax.Call, form: Callable[[relax.Call, relax.Expr, Affine], relax.Expr | None]
    ) -> relax.Expr:
        source = dequantized(self.definition(call.args[0]))
        if source is None:
            return call
        moved = form(call, *source)
        if moved is None:
            return call
        if isinstance(call.ty, relax.TupleType):
            # Fields are dequantized one by one, where they are taken.
            fields = self.emit(moved)
            self.tuples[fields] = source[1]
            return fields
        return dequantize(self.emit(moved), source[1])

    def _field(self, item: relax.TupleGetItem) -> relax.Expr:
        affine = self.tuples.get(item.tuple_value)
        if affine is None:
            return item
        return dequantize(self.emit(item), affine)

    def _concat(self, call: relax.Call) -> relax.Expr:
        """Inputs that share their parameters are concatenated as bytes."""
        fields = call.args[0].fields if isinstance(call.args[0], relax.Tuple) else None
        if fields is None:
            bound = self.definition(call.args[0])
            fields = bound.fields if isinstance(bound, relax.Tuple) else None
        if fields is None:
            return call
        sources = [dequantized(self.definition(f)) for f in fields]
        if any(s is None or s[1] != sources[0][1] for s in sources):  # type: ignore[index]
            return relax.Call(call.op, [relax.Tuple(list(fields))], call.attrs, call.ty_args)
        moved = relax.Call(call.op, [relax.Tuple([s[0] for s in sources if s])], call.attrs, call.ty_args)
        return dequantize(self.emit(moved), sources[0][1])  # type: ignore[index]

    def _quantized(self, x: relax.Expr, affine: Affine) -> relax.Expr:
        """``quantize(x)``, moved up as far as it goes."""
        bound = self.definition(x)
        source = dequantized(bound)
        if source is not None and source[1] == affine:
            return source[0]
        name = op_name(bound)
        if name in _UPWARD:
            return self.emit(_same(bound, self._quantized(bound.args[0], affine), affine))
        if name == "relax.concat":
            fields = [self._quantized(f, affine) for f in bound.args[0].fields]
            return self.emit(relax.Call(bound.op, [relax.Tuple(fields)], bound.attrs, bound.ty_args))
        return self.emit(quantize(x, affine))
