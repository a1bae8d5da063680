"""PlanLayout: four-dimensional activations between operators of this compiler are NHWC.

Before::

    y = qc.conv2d(x, w, ..., layout="NCHW")
    z = concat((y, x), axis=1)

After::

    x' = permute_dims(x, [0, 2, 3, 1])
    y' = qc.conv2d(x', w, ..., layout="NHWC")
    z' = concat((y', x'), axis=3)

Kernels read channels in vectors. Every tensor is permuted at most once in each direction, and only where an operator
that fixes the order of axes meets one that does not; a tensor of one pixel is reshaped instead. The split of the
channels into groups (a channel shuffle) keeps its channels last too.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import tvm
from tvm import relax
from tvm.ir import Constant

from qcompiler import operators
from qcompiler.passes.graph import Rewriter, array, constant, dims, dtype, ints, op_name

TO_NHWC = [0, 2, 3, 1]
TO_NCHW = [0, 3, 1, 2]


class PlanLayout:
    """Puts channels last between operators that read them in vectors."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _PlanLayout(module).run()


def _axis(axis: int, rank: int = 4) -> int:
    """Where axis ``axis`` of NCHW (or N, C1, C2, H, W) goes with channels last."""
    axis %= rank
    channels = rank - 3
    if axis == 0:
        return 0
    return axis + 2 if axis <= channels else axis - channels


class _PlanLayout(Rewriter):
    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.last: dict[relax.Var, relax.Expr] = {}
        """Channels-last form, by new variable or by old variable whose channels-first form does not exist yet."""
        self.first: dict[relax.Var, relax.Expr] = {}

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        form = _FORMS.get(op_name(value))
        moved = form(self, value) if form is not None else None
        if moved is None:
            return self.replaced(value)
        self.last[var] = self.emit(moved) if not isinstance(moved, relax.Var) else moved
        # The channels-first form is made where somebody asks for it.
        return self.last[var]

    def replaced(self, expr: relax.Expr) -> relax.Expr:
        if isinstance(expr, relax.Var) and expr in self.last:
            if expr not in self.first:
                self.first[expr] = self._to_first(self.last[expr], dims(expr))
            return self.first[expr]
        return super().replaced(expr)

    def channels_last(self, old: relax.Expr) -> relax.Expr:
        """The channels-last form of an old tensor, permuted if there is none yet."""
        if isinstance(old, relax.Var) and old in self.last:
            return self.last[old]
        first = super().replaced(old)
        shape = dims(old)
        name = f"{old.name}_nhwc" if isinstance(old, relax.Var) else ""
        if shape[2] * shape[3] == 1 or shape[1] == 1:
            moved = self.emit(relax.op.reshape(first, (shape[0], shape[2], shape[3], shape[1])), name)
        else:
            moved = self.emit(relax.op.permute_dims(first, TO_NHWC), name)
        if isinstance(old, relax.Var):
            self.last[old] = moved
            self.first[old] = first
        return moved

    def has_last(self, old: relax.Expr) -> bool:
        return isinstance(old, relax.Var) and old in self.last

    def _to_first(self, last: relax.Expr, shape: tuple[int, ...]) -> relax.Expr:
        rank = len(shape)
        moved = [dims(last)[_axis(a, rank)] for a in range(rank)]
        spatial = moved[rank - 2] * moved[rank - 1]
        if spatial == 1 or all(moved[a] == 1 for a in range(1, rank - 2)):
            return self.emit(relax.op.reshape(last, shape))
        return self.emit(relax.op.permute_dims(last, [_axis(a, rank) for a in range(rank)]))


def _spatial(plan: _PlanLayout, call: relax.Call) -> relax.Expr:
    """Operators with an attribute ``layout``."""
    args = [plan.channels_last(call.args[0])]
    for arg in call.args[1:]:
        activation = isinstance(arg, relax.Var) and len(dims(arg)) == 4
        args.append(plan.channels_last(arg) if activation else Rewriter.replaced(plan, arg))
    attrs = {str(k): v for k, v in call.attrs.items()}
    return operators.call(str(call.op.name), args, **{**attrs, "layout": "NHWC"})


def _pointwise(plan: _PlanLayout, call: relax.Call) -> relax.Expr | None:
    """Element-wise operators follow their operands."""
    activations = [a for a in call.args if isinstance(a, relax.Var)]
    if any(len(dims(a)) != 4 for a in activations) or not any(plan.has_last(a) for a in activations):
        return None
    args = [plan.channels_last(a) if isinstance(a, relax.Var) else a for a in call.args]
    if op_name(call) in _BROADCASTING:
        args = [_constant_last(a) if isinstance(a, Constant) else a for a in args]
    return relax.Call(call.op, args, call.attrs, call.ty_args)


def _constant_last(operand: relax.Expr) -> relax.Expr:
    """A constant that broadcasts to an NCHW tensor, for the same tensor with its channels last."""
    values = array(operand)
    whole = values.reshape((1,) * (4 - values.ndim) + values.shape)
    return constant(whole.transpose(TO_NHWC))


def _pool(plan: _PlanLayout, call: relax.Call) -> relax.Expr | None:
    """Float pooling, whose attributes name the layout."""
    if not plan.has_last(call.args[0]):
        return None
    x, a = plan.channels_last(call.args[0]), call.attrs
    if op_name(call) == "relax.nn.adaptive_avg_pool2d":
        size = None if a.output_size is None else ints(a.output_size)
        return relax.op.nn.adaptive_avg_pool2d(x, size, "NHWC")
    pool = getattr(relax.op.nn, op_name(call).removeprefix("relax.nn."))
    return pool(
        x, ints(a.pool_size), ints(a.strides), ints(a.padding), ints(a.dilation), bool(a.ceil_mode),
        bool(a.count_include_pad), "NHWC",
    )  # fmt: skip


def _mean(plan: _PlanLayout, call: relax.Call) -> relax.Expr | None:
    """A mean that keeps its axes."""
    a = call.attrs
    if not plan.has_last(call.args[0]) or a.axis is None or not a.keepdims:
        return None
    return relax.op.mean(plan.channels_last(call.args[0]), [_axis(int(k)) for k in a.axis], keepdims=True)


def _concat(plan: _PlanLayout, call: relax.Call) -> relax.Expr | None:
    fields = list(plan.was(call.args[0]).fields)
    if len(dims(call)) != 4 or not any(plan.has_last(f) for f in fields):
        return None
    moved = relax.Tuple([plan.channels_last(f) for f in fields])
    return relax.op.concat(moved, axis=_axis(int(call.attrs.axis)))


def _strided_slice(plan: _PlanLayout, call: relax.Call) -> relax.Expr | None:
    if len(dims(call)) != 4 or not plan.has_last(call.args[0]):
        return None
    axes, begin, end, *stride = (_numbers(plan.was(a)) for a in call.args[1:])
    x = plan.channels_last(call.args[0])
    return relax.op.strided_slice(x, [_axis(a) for a in axes], begin, end, stride[0] if stride else None)


def _numbers(expr: relax.Expr) -> list[int]:
    fields = expr.fields if isinstance(expr, relax.Tuple) else expr.values
    return [int(getattr(f, "value", f)) for f in fields]


def _resize2d(plan: _PlanLayout, call: relax.Call) -> relax.Expr | None:
    a = call.attrs
    if a.layout != "NCHW" or not plan.has_last(call.args[0]) or dtype(call) != "uint8":
        return None
    return relax.op.image.resize2d(
        plan.channels_last(call.args[0]), Rewriter.replaced(plan, call.args[1]), roi=[float(r) for r in a.roi],
        layout="NHWC", method=a.method, coordinate_transformation_mode=a.coordinate_transformation_mode,
        rounding_method=a.rounding_method, cubic_alpha=float(a.cubic_alpha), cubic_exclude=int(a.cubic_exclude),
        extrapolation_value=float(a.extrapolation_value),
    )  # fmt: skip


def _pad(plan: _PlanLayout, call: relax.Call) -> relax.Expr | None:
    if len(dims(call)) != 4 or not plan.has_last(call.args[0]):
        return None
    widths = np.asarray(ints(call.attrs.pad_width)).reshape(4, 2)[TO_NHWC].reshape(-1)
    x = plan.channels_last(call.args[0])
    return relax.op.nn.pad(x, [int(w) for w in widths], str(call.attrs.pad_mode), float(call.attrs.pad_value))


def _reshape(plan: _PlanLayout, call: relax.Call) -> relax.Expr | None:
    """Channels split into two axes, or two axes joined to channels: a channel shuffle's first and last step."""
    source, target = dims(call.args[0]), dims(call)
    if not plan.has_last(call.args[0]) or {len(source), len(target)} != {4, 5}:
        return None
    if source[0] != target[0] or source[-2:] != target[-2:]:
        return None
    x = plan.last[call.args[0]]
    channels = target[1:-2]
    return relax.op.reshape(x, (target[0], *target[-2:], *channels))


def _permute_dims(plan: _PlanLayout, call: relax.Call) -> relax.Expr | None:
    """The exchange of the two channel axes of a shuffle."""
    if len(dims(call)) != 5 or not plan.has_last(call.args[0]) or call.attrs.axes is None:
        return None
    if [int(a) for a in call.attrs.axes] != [0, 2, 1, 3, 4]:
        return None
    return relax.op.permute_dims(plan.last[call.args[0]], [0, 1, 2, 4, 3])


_FLOAT_UNARY = (
    "qc.quantize", "qc.dequantize", "qc.to_bfloat16", "relax.abs", "relax.clip", "relax.erf", "relax.exp", "relax.negative",
    "relax.nn.gelu", "relax.nn.gelu_tanh", "relax.nn.leakyrelu", "relax.nn.relu", "relax.nn.silu", "relax.sigmoid",
    "relax.sqrt", "relax.square", "relax.tanh",
)  # fmt: skip
_BROADCASTING = (
    "qc.add", "qc.mul", "relax.add", "relax.divide", "relax.maximum", "relax.minimum", "relax.multiply",
    "relax.subtract",
)  # fmt: skip
"""Operators of two operands, whose constants are transposed."""

_FORMS: dict[str, Callable[[_PlanLayout, relax.Call], relax.Expr | None]] = {
    "qc.conv2d": _spatial,
    "qc.max_pool2d": _spatial,
    "qc.avg_pool2d": _spatial,
    "qc.lut": _pointwise,
    "qc.float_conv2d": _spatial,
    **{name: _pointwise for name in (*_FLOAT_UNARY, *_BROADCASTING)},
    "relax.nn.max_pool2d": _pool,
    "relax.nn.avg_pool2d": _pool,
    "relax.nn.adaptive_avg_pool2d": _pool,
    "relax.mean": _mean,
    "relax.concat": _concat,
    "relax.strided_slice": _strided_slice,
    "relax.image.resize2d": _resize2d,
    "relax.nn.pad": _pad,
    "relax.reshape": _reshape,
    "relax.permute_dims": _permute_dims,
}
"""Operators that have a form with channels last, in terms of old calls."""
