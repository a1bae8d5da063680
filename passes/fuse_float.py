"""FuseFloat: convolutions and matrix products that stay in float become one operator with what follows them.

Before::

    y = nn.conv2d(x, w)
    b = nn.batch_norm(y, gamma, beta, mean, variance)[0]
    z = nn.relu(add(b, r))

After::

    z = qc.float_conv2d(x, w * gamma / sqrt(variance + eps), bias, r, lo=0, hi=inf)

What is fused: constants a channel that are added or multiplied, batch norms, a residual of the output's shape, and
clamps. Only where nothing else reads the result in between. A batch norm that follows something else becomes a
multiplication and an addition. ``qc.round_float`` before a layer gives it its precision; where the target multiplies
bfloat16, the layer's input becomes that.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Constant

from qcompiler import operators
from qcompiler.operators import FLOAT_LAYERS
from qcompiler.passes.graph import Rewriter, array, constant, dims, dtype, ints, op_name
from qcompiler.passes.tables import number

Values = NDArray[np.float64]

BITS = "_bits"
"""What the name of a tensor's bfloat16 form ends in, behind the tensor's."""


class FuseFloat:
    """Gathers float layers into operators that the target has kernels for.

    Args:
        multiplies_bfloat16: the target has an instruction that multiplies bfloat16.
    """

    def __init__(self, multiplies_bfloat16: bool) -> None:
        self.multiplies_bfloat16 = multiplies_bfloat16

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        fuse = _FuseFloat(module, self.multiplies_bfloat16)
        return _Rename(fuse.run(), fuse.names).run()


class DropPrecision:
    """Takes ``qc.round_float`` away where a target has no kernels for float layers: they are computed in float32."""

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _DropPrecision(module).run()


class _DropPrecision(Rewriter):
    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        return self.replaced(value.args[0]) if op_name(value) == "qc.round_float" else None


class _Rename(Rewriter):
    """Gives layers the names of the user's modules, which their float forms had until now."""

    def __init__(self, module: tvm.IRModule, names: dict[str, str]) -> None:
        super().__init__(module)
        self.names = names

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        self.name = self.names.get(self.name, self.name)
        return None


class _FuseFloat(Rewriter):
    def __init__(self, module: tvm.IRModule, multiplies_bfloat16: bool) -> None:
        super().__init__(module)
        self.multiplies_bfloat16 = multiplies_bfloat16
        self.bfloat16: dict[relax.Expr, relax.Var] = {}
        """The bfloat16 form of new variables."""
        self.continued: str | None = None
        """Name of the layer that the call in hand takes further."""
        self.names: dict[str, str] = {}
        """Names of the layers that new variables are the results of, by the variables' names."""

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        new = self.replaced(value)
        if op_name(value) == "qc.round_float":
            return new.args[0]  # its users look for it where it was
        form = _FORMS.get(op_name(value))
        fused = form(self, value, new) if form is not None else None
        if fused is None:
            return new
        return self.of_layer(fused) if op_name(fused) in FLOAT_LAYERS else fused

    def of_layer(self, call: relax.Call) -> relax.Var:
        """A layer's call, bound to a variable that will have the name of the layer that it continues, if any."""
        name, self.continued = self.continued or self.name, None
        result = self.emit(call)
        self.names[result.name] = name
        return result

    def input(self, old: relax.Expr) -> tuple[relax.Expr, str]:
        """The input of a layer as its kernel reads it, and the layer's precision."""
        x, before = self.replaced(old), self.was(old)
        if op_name(before) != "qc.round_float":
            return x, "float32"
        precision = str(before.attrs["precision"])
        if precision != "bfloat16" or not self.multiplies_bfloat16:
            return x, precision
        if x not in self.bfloat16:
            name = self.names.get(x.name, x.name) if isinstance(x, relax.Var) else self.name
            self.bfloat16[x] = self.emit(operators.call("qc.to_bfloat16", [x]), f"{name}{BITS}")
        return self.bfloat16[x], precision

    def layer(self, old: relax.Expr) -> relax.Call | None:
        """The float layer that computes an old operand for its one user, while nothing bounds its result."""
        if not isinstance(old, relax.Var) or self.uses[old] != 1:
            return None
        call = self.definition(self.replaced(old))
        if op_name(call) not in FLOAT_LAYERS or (float(call.attrs["lo"]), float(call.attrs["hi"])) != (
            -inf,
            inf,
        ):
            return None
        return call

    def changed(self, old: relax.Expr, args: list[relax.Expr], **attrs: Any) -> relax.Call:
        """The layer that computes an old operand, with other operands and attributes."""
        var = self.replaced(old)
        self.continued = self.names[var.name]
        call = self.definition(var)
        return operators.call(op_name(call), args, **{**{str(k): v for k, v in call.attrs.items()}, **attrs})


def _conv2d(fuse: _FuseFloat, old: relax.Call, new: relax.Call) -> relax.Expr | None:
    weight, a = new.args[1], old.attrs
    plain = (a.data_layout, a.kernel_layout, a.out_layout) == ("NCHW", "OIHW", "NCHW")
    if not plain or not _is_weight(weight, 4) or dtype(new.args[0]) != "float32":
        return None
    x, precision = fuse.input(old.args[0])
    return _layer(
        "qc.float_conv2d", [x, weight], precision=precision, strides=ints(a.strides), padding=ints(a.padding), dilation=ints(a.dilation),
        groups=int(a.groups), layout="NCHW",
    )  # fmt: skip


def _matmul(fuse: _FuseFloat, old: relax.Call, new: relax.Call) -> relax.Expr | None:
    x, weight = new.args
    if not _is_weight(weight, 2) or dtype(x) != "float32" or len(dims(x)) < 2:
        return None
    x, precision = fuse.input(old.args[0])
    return _layer("qc.float_dense", [x, constant(array(weight).T)], precision=precision)


def _is_weight(expr: relax.Expr, rank: int) -> bool:
    return isinstance(expr, Constant) and dtype(expr) == "float32" and len(dims(expr)) == rank


def _layer(name: str, args: list[relax.Expr], **attrs: Any) -> relax.Call:
    bias = constant(np.zeros(dims(args[1])[0], np.float32))
    return operators.call(name, [*args, bias], **attrs, lo=-inf, hi=inf, out_dtype="float32")


def _channel_axis(call: relax.Call) -> int:
    return 1 if op_name(call) == "qc.float_conv2d" else len(dims(call)) - 1


def _per_channel(expr: relax.Expr, call: relax.Call) -> Values | None:
    """A constant operand of ``call`` as one value a channel, if it is that."""
    if not isinstance(expr, Constant) or dtype(expr) != "float32":
        return None
    values, rank, axis = array(expr).astype(np.float64), len(dims(call)), _channel_axis(call)
    if values.ndim > rank:
        return None
    whole = values.reshape((1,) * (rank - values.ndim) + values.shape)
    if any(extent != 1 for k, extent in enumerate(whole.shape) if k != axis):
        return None
    return np.broadcast_to(whole.reshape(-1), (dims(call)[axis],))


def _scaled(fuse: _FuseFloat, old: relax.Expr, scale: Values, shift: Values) -> relax.Call | None:
    """The layer whose result is that of ``old`` times ``scale`` plus ``shift``, a channel each."""
    call = fuse.layer(old)
    assert call is not None
    x, weight, bias, *residual = call.args
    if residual and not (scale == 1.0).all():
        return None
    values = array(weight).astype(np.float64)
    scaled = values * scale.reshape(-1, *(1,) * (values.ndim - 1))
    moved = array(bias).astype(np.float64) * scale + shift
    return fuse.changed(old, [x, _float32(scaled), _float32(moved), *residual])


def _float32(values: Values) -> relax.Expr:
    return constant(values.astype(np.float32))


def _add(fuse: _FuseFloat, old: relax.Call, new: relax.Call) -> relax.Expr | None:
    for position in (0, 1):
        call = fuse.layer(old.args[position])
        other = new.args[1 - position]
        if call is None:
            continue
        shift = _per_channel(other, call)
        if shift is not None:
            result = _scaled(fuse, old.args[position], np.ones_like(shift), shift)
            if op_name(call) == "qc.float_dense":
                fuse.continued = None  # the importer names a linear layer's sum after it, not its product
            return result
        fits = isinstance(other, relax.Var) and dims(other) == dims(new) == dims(call)
        if fits and dtype(other) == "float32" and len(call.args) == 3:
            return fuse.changed(old.args[position], [*call.args, other])
    return None


def _multiply(fuse: _FuseFloat, old: relax.Call, new: relax.Call) -> relax.Expr | None:
    for position in (0, 1):
        call = fuse.layer(old.args[position])
        scale = None if call is None else _per_channel(new.args[1 - position], call)
        if call is not None and scale is not None:
            return _scaled(fuse, old.args[position], scale, np.zeros_like(scale))
    return None


def _batch_norm(fuse: _FuseFloat, old: relax.Call, new: relax.Call) -> relax.Expr | None:
    x, *statistics = new.args
    a = old.attrs
    if a.training or not all(isinstance(s, Constant) for s in statistics):
        return None
    gamma, beta, mean, variance = (array(s).astype(np.float64) for s in statistics)
    scale = (gamma if a.scale else 1.0) / np.sqrt(variance + float(a.epsilon))
    shift = (beta if a.center else 0.0) - mean * scale
    call = fuse.layer(old.args[0])
    fused = None
    if call is not None and _channel_axis(call) == int(a.axis) % len(dims(x)):
        fused = _scaled(fuse, old.args[0], scale, shift)
    if fused is None:
        shape = [1] * len(dims(x))
        shape[int(a.axis)] = -1
        product = fuse.emit(relax.op.multiply(x, _float32(scale.reshape(shape))))
        fused = relax.op.add(product, _float32(shift.reshape(shape)))
    result = fuse.of_layer(fused) if op_name(fused) in FLOAT_LAYERS else fuse.emit(fused)
    return relax.Tuple([result, statistics[2], statistics[3]])


def _relu(fuse: _FuseFloat, old: relax.Call, new: relax.Call) -> relax.Expr | None:
    return _clamped(fuse, old, 0.0, inf)


def _clip(fuse: _FuseFloat, old: relax.Call, new: relax.Call) -> relax.Expr | None:
    return _clamped(fuse, old, number(old.args[1]), number(old.args[2]))


def _clamped(fuse: _FuseFloat, old: relax.Call, lo: float, hi: float) -> relax.Expr | None:
    call = fuse.layer(old.args[0])
    return None if call is None else fuse.changed(old.args[0], list(call.args), lo=float(lo), hi=float(hi))


_FORMS: dict[str, Callable[[_FuseFloat, relax.Call, relax.Call], relax.Expr | None]] = {
    "relax.nn.conv2d": _conv2d,
    "relax.matmul": _matmul,
    "relax.add": _add,
    "relax.multiply": _multiply,
    "relax.nn.batch_norm": _batch_norm,
    "relax.nn.relu": _relu,
    "relax.clip": _clip,
}
"""What begins or continues a layer: the new expression for an old call, whose operands are replaced in the new one."""
