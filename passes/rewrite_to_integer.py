"""RewriteToInteger: quantized operators become the integer operators of ``qcompiler.operators``.

Before::

    y = quantize(relu(add(add(conv2d(dequantize(x), dequantize(w)), b), dequantize(r))), s, z)
    t = quantize(silu(dequantize(y)), s2, z2)

After::

    y = qc.conv2d(x, w, bias, multiplier, r, residual_multiplier, residual_offset)
    t = qc.lut(y, table)

Each quantize node is the root of a pattern; what no pattern takes keeps its float operators between ``qc.dequantize``
and ``qc.quantize``, and the reason is noted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Constant

from qcompiler import operators
from qcompiler.passes.fold_scales import AccumulatorOverflowError, Folded, fold, fold_addition
from qcompiler.passes.graph import Rewriter, array, constant, dims, dtype, ints, is_tensor, op_name
from qcompiler.passes.quantized import Affine, Weight, dequantized, dequantized_weight, per_tensor
from qcompiler.passes.tables import Chain, number


class RewriteToInteger:
    """Rewrites quantized operators to integer operators; ``notes`` holds why others were left alone."""

    def __init__(self) -> None:
        self.notes: dict[str, str] = {}

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        rewriter = _RewriteToInteger(module)
        result = rewriter.run()
        self.notes = rewriter.notes
        return result


@dataclass(frozen=True)
class _Layer:
    """A float convolution or matrix product on quantized operands."""

    call: relax.Call
    x: relax.Expr
    affine: Affine
    weight: Weight
    bias: NDArray[np.float64]
    name: str


@dataclass(frozen=True)
class _Bounds:
    """Clamps of an output: an activation that the requantization does by its bounds."""

    lo: int
    hi: int


class _RewriteToInteger(Rewriter):
    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        new = self.replaced(value)
        name = op_name(new)
        if name == "relax.quantize" and dtype(new) == "uint8":
            affine = per_tensor(new)
            if affine is None:
                self.notes[self.name] = "quantized with one scale a channel; activations have one a tensor"
                return new
            integer = self._integer(new.args[0], affine)
            return _quantize(new.args[0], affine) if integer is None else integer
        if name == "relax.dequantize" and isinstance(new.args[0], Constant):
            return new  # a weight: its users look through it, and what is left is folded at the end
        if name in ("relax.nn.conv2d", "relax.matmul", "relax.add"):
            # A layer whose output stays real; where a quantize node follows, this one is dead.
            return self._real_layer(new)
        return new

    def __init__(self, module: tvm.IRModule) -> None:
        super().__init__(module)
        self.names: dict[str, str] = {}
        """Names of the user's layers, by the names of the variables that compute them now."""

    def run(self) -> tvm.IRModule:
        return _Borders(super().run(), self.names).run()

    # Roots

    def _integer(self, x: relax.Expr, out: Affine) -> relax.Expr | None:
        """The integer form of ``quantize(x)``, or None."""
        chain = Chain(x, self.definition)
        table = chain.table(out)
        if table is not None and chain.source is not None:
            if chain.length == 0 and np.array_equal(table, np.arange(256)):
                return chain.source
            return operators.call("qc.lut", [chain.source, constant(table)])
        bounds, inner = self._activation(x, out)
        for form in (self._layer_output, self._sum, self._product, self._average):
            result = form(inner, out, bounds)
            if result is not None:
                return result
        return None

    def _activation(self, x: relax.Expr, out: Affine) -> tuple[_Bounds, relax.Expr]:
        """Clamps around ``x`` as bounds of the output: rounding is monotonic, so they commute with it."""
        lo, hi = 0, 255  # of the clamps so far; one further in is clamped by them
        while True:
            bound = self.definition(x)
            name = op_name(bound)
            if name == "relax.nn.relu":
                lo = min(max(lo, out.quantized(0.0)), hi)
            elif name == "relax.clip":
                low, high = (out.quantized(number(a)) for a in bound.args[1:3])
                lo, hi = min(max(low, lo), hi), min(max(high, lo), hi)
            else:
                return _Bounds(lo, hi), x
            x = bound.args[0]

    def _layer_output(self, x: relax.Expr, out: Affine, bounds: _Bounds) -> relax.Expr | None:
        layer = self._layer(x)
        if layer is not None:
            return self._emit_layer(layer, out, bounds)
        bound = self.definition(x)
        if op_name(bound) != "relax.add":
            return None
        for position in (1, 0):
            layer = self._layer(bound.args[position])
            residual = dequantized(self.definition(bound.args[1 - position]))
            if layer is not None and residual is not None and dims(residual[0]) == dims(x):
                result = self._emit_layer(layer, out, bounds, residual)
                if result is not None:
                    return result
        return None

    def _real_layer(self, new: relax.Call) -> relax.Expr:
        marker = self.emit(new)
        self.names[marker.name] = self.name
        layer = self._layer(marker)
        if layer is None:
            return marker
        folded = self._folded(layer, 1.0, None)
        if folded is None:
            return marker
        real = self.emit(self._layer_call(layer, folded, Affine(1.0, 0), _Bounds(0, 255), None, "float32"))
        self.names[real.name] = layer.name
        # Patterns of later nodes look through the float form.
        self.new[real] = new
        return real

    def _sum(self, x: relax.Expr, out: Affine, bounds: _Bounds) -> relax.Expr | None:
        bound = self.definition(x)
        name = op_name(bound)
        if name not in ("relax.add", "relax.subtract"):
            return None
        a, b = (dequantized(self.definition(arg), constants=True) for arg in bound.args)
        if a is None or b is None:
            return None
        folded = fold_addition(a[1], b[1], out, 1 if name == "relax.add" else -1)
        if folded is None:
            self.notes[self.name] = "the scales of its operands are too far apart for int32"
            return None
        return operators.call(
            "qc.add", [a[0], b[0]], a_multiplier=folded.a_multiplier, b_multiplier=folded.b_multiplier,
            offset=folded.offset, shift=folded.shift, lo=bounds.lo, hi=bounds.hi,
        )  # fmt: skip

    def _product(self, x: relax.Expr, out: Affine, bounds: _Bounds) -> relax.Expr | None:
        bound = self.definition(x)
        if op_name(bound) != "relax.multiply":
            return None
        a, b = (dequantized(self.definition(arg), constants=True) for arg in bound.args)
        if a is None or b is None:
            return None
        return operators.call(
            "qc.mul", [a[0], b[0]], a_zero_point=a[1].zero_point, b_zero_point=b[1].zero_point,
            multiplier=float(np.float32(a[1].scale * b[1].scale / out.scale)), zero_point=out.zero_point,
            lo=bounds.lo, hi=bounds.hi,
        )  # fmt: skip

    def _average(self, x: relax.Expr, out: Affine, bounds: _Bounds) -> relax.Expr | None:
        bound = self.definition(x)
        window = _window(bound)
        if window is None:
            return None
        source = dequantized(self.definition(bound.args[0]))
        if source is None or len(dims(source[0])) != 4:
            return None
        multiplier = (source[1].scale / out.scale / window.counts).astype(np.float32)
        pooled = operators.call(
            "qc.avg_pool2d", [source[0], constant(multiplier)], pool_size=list(window.size),
            strides=list(window.strides), padding=list(window.padding), layout="NCHW",
            input_zero_point=source[1].zero_point, zero_point=out.zero_point, lo=bounds.lo, hi=bounds.hi,
        )  # fmt: skip
        if dims(bound) == (*dims(source[0])[:2], *window.counts.shape):
            return pooled
        return relax.op.reshape(self.emit(pooled), dims(bound))

    # Layers

    def _layer(self, x: relax.Expr) -> _Layer | None:
        """The layer that computes ``x``, its constant bias included."""
        bound = self.definition(x)
        bias: NDArray[Any] | None = None
        name = x.name if isinstance(x, relax.Var) else self.name
        if op_name(bound) == "relax.add":
            position = 1 if isinstance(bound.args[1], Constant) else 0
            if not isinstance(bound.args[position], Constant):
                return None
            bias = array(bound.args[position])
            inner = bound.args[1 - position]
            bound = self.definition(inner)
            # The importer names a convolution after its module, and of a linear layer only the sum with the bias.
            if op_name(bound) == "relax.nn.conv2d" and isinstance(inner, relax.Var):
                name = inner.name
        name = self.names.get(name, name)
        if op_name(bound) == "relax.nn.conv2d":
            return self._conv2d(bound, bias, name)
        if op_name(bound) == "relax.matmul":
            return self._matmul(bound, bias, name)
        return None

    def _conv2d(self, call: relax.Call, bias: NDArray[Any] | None, name: str) -> _Layer | None:
        a = call.attrs
        if (a.data_layout, a.kernel_layout, a.out_layout) != ("NCHW", "OIHW", "NCHW"):
            self.notes[name] = f"its layout is {a.data_layout}; allowed: NCHW"
            return None
        weight = dequantized_weight(self.definition(call.args[1]))
        channels = dims(call)[1]
        if bias is not None and bias.size not in (1, channels):
            return None
        if bias is not None and bias.size == channels > 1 and bias.shape[-3:] != (channels, 1, 1):
            return None
        return self._checked(call, weight, bias, channels, name)

    def _matmul(self, call: relax.Call, bias: NDArray[Any] | None, name: str) -> _Layer | None:
        transposed = self.definition(call.args[1])
        if (
            op_name(transposed) != "relax.permute_dims"
            or len(dims(transposed)) != 2
            or len(dims(call.args[0])) < 2
        ):
            return None
        if transposed.attrs.axes is not None and ints(transposed.attrs.axes) != (1, 0):
            return None
        weight = dequantized_weight(self.definition(transposed.args[0]))
        channels = dims(call)[-1]
        if bias is not None and bias.size not in (1, channels):
            return None
        if bias is not None and bias.size == channels > 1 and bias.shape[-1] != channels:
            return None
        return self._checked(call, weight, bias, channels, name)

    def _checked(
        self, call: relax.Call, weight: Weight | str, bias: NDArray[Any] | None, channels: int, name: str
    ) -> _Layer | None:
        if isinstance(weight, str):
            self.notes[name] = weight
            return None
        source = dequantized(self.definition(call.args[0]))
        if source is None:
            self.notes[name] = "its input is not quantized"
            return None
        values = np.zeros(channels) if bias is None else np.broadcast_to(bias.reshape(-1), channels)
        return _Layer(call, *source, weight, values.astype(np.float64), name)

    def _folded(self, layer: _Layer, out_scale: float, residual: Affine | None) -> Folded | None:
        try:
            return fold(layer.weight, layer.bias, layer.affine, out_scale, residual)
        except AccumulatorOverflowError as error:
            self.notes[layer.name] = str(error)
            return None

    def _emit_layer(
        self, layer: _Layer, out: Affine, bounds: _Bounds, residual: tuple[relax.Expr, Affine] | None = None
    ) -> relax.Expr | None:
        folded = self._folded(layer, out.scale, residual[1] if residual else None)
        if folded is None:
            return None
        call = self._layer_call(layer, folded, out, bounds, residual[0] if residual else None, "uint8")
        result = self.emit(call, layer.name)
        self.names[result.name] = layer.name
        return result

    def _layer_call(
        self,
        layer: _Layer,
        folded: Folded,
        out: Affine,
        bounds: _Bounds,
        residual: relax.Expr | None,
        out_dtype: str,
    ) -> relax.Call:
        args = [layer.x, constant(folded.weight), constant(folded.bias), constant(folded.multiplier)]
        if residual is not None and folded.residual is not None:
            args += [residual, constant(folded.residual.multiplier), constant(folded.residual.offset)]
        attrs: dict[str, Any] = {
            "zero_point": out.zero_point,
            "lo": bounds.lo,
            "hi": bounds.hi,
            "residual_shift": folded.residual.shift if folded.residual else 0,
            "out_dtype": out_dtype,
            "accumulator_bound": folded.accumulator_bound,
        }
        if op_name(layer.call) == "relax.matmul":
            return operators.call("qc.dense", args, **attrs)
        a = layer.call.attrs
        return operators.call(
            "qc.conv2d", args, strides=list(ints(a.strides)), padding=list(ints(a.padding)),
            dilation=list(ints(a.dilation)), groups=int(a.groups), layout="NCHW", pad_value=layer.affine.zero_point,
            **attrs,
        )  # fmt: skip


@dataclass(frozen=True)
class _Window:
    """An averaging window; ``counts`` is the divisor at each place of the output, ``[OH, OW]``."""

    size: tuple[int, int]
    strides: tuple[int, int]
    padding: tuple[int, int, int, int]
    counts: NDArray[np.float64]


def _window(call: relax.Expr) -> _Window | None:
    """The window of an average pooling, an adaptive one that is regular, or a mean over space."""
    name = op_name(call)
    if name == "relax.mean":
        shape = dims(call.args[0])
        axes = sorted(int(a) % len(shape) for a in (call.attrs.axis or range(len(shape))))
        if len(shape) != 4 or axes != [2, 3]:
            return None
        return _Window(shape[2:], shape[2:], (0, 0, 0, 0), np.full((1, 1), float(shape[2] * shape[3])))
    if name == "relax.nn.adaptive_avg_pool2d" and call.attrs.layout == "NCHW":
        (h, w), (oh, ow) = dims(call.args[0])[2:], dims(call)[2:]
        if h % oh or w % ow:
            return None
        size = (h // oh, w // ow)
        return _Window(size, size, (0, 0, 0, 0), np.full((oh, ow), float(size[0] * size[1])))
    if name == "relax.nn.avg_pool2d" and call.attrs.layout == "NCHW":
        a = call.attrs
        size, strides, padding = ints(a.pool_size), ints(a.strides), ints(a.padding)
        if ints(a.dilation) != (1, 1):
            return None
        counts = [
            _extents(dims(call.args[0])[2 + k], dims(call)[2 + k], size[k], strides[k], padding[k], padding[2 + k],
                     bool(a.count_include_pad))
            for k in (0, 1)
        ]  # fmt: skip
        return _Window(size, strides, padding, np.outer(*counts))
    return None


def _extents(
    size: int, outputs: int, window: int, stride: int, before: int, after: int, padding_counts: bool
) -> NDArray[np.float64]:
    """How many positions of each window count, along one axis; those past the padding never do."""
    starts = np.arange(outputs) * stride - before
    ends = np.minimum(starts + window, size + after)
    if not padding_counts:
        starts, ends = np.maximum(starts, 0), np.minimum(ends, size)
    return (ends - starts).astype(np.float64)


def _quantize(x: relax.Expr, affine: Affine) -> relax.Expr:
    return operators.call(
        "qc.quantize",
        [x],
        inv_scale=float(np.float32(1.0 / affine.scale)),
        zero_point=affine.zero_point,
        lo=0,
        hi=255,
    )


class _Borders(Rewriter):
    """What is left of dequantize nodes: of activations the integer operator, of weights a float constant.

    Layers get the names of the user's modules, which the float forms had until now.
    """

    def __init__(self, module: tvm.IRModule, names: dict[str, str]) -> None:
        super().__init__(module)
        self.names = names

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        self.name = self.names.get(self.name, self.name)
        if op_name(value) != "relax.dequantize":
            return None
        new = self.replaced(value)
        if isinstance(new.args[0], Constant):
            return constant(_real(new))
        source = dequantized(new)
        if source is None or not is_tensor(new):
            return None
        return operators.call(
            "qc.dequantize",
            [source[0]],
            scale=float(np.float32(source[1].scale)),
            zero_point=source[1].zero_point,
        )


def _real(call: relax.Call) -> NDArray[np.float32]:
    """The real numbers of a constant dequantize node."""
    values = array(call.args[0]).astype(np.float32)
    scales, zeros = array(call.args[1]).astype(np.float32), array(call.args[2]).astype(np.float32)
    if scales.size > 1:
        shape = [1] * values.ndim
        shape[int(call.attrs.axis)] = scales.size
        scales, zeros = scales.reshape(shape), zeros.reshape(shape)
    return np.asarray((values - zeros) * scales, np.float32)
