"""From an exported program, with or without quantize/dequantize nodes, to a Relax module.

TVM's frontend imports the float operators; it has no converters for the namespace ``quantized_decomposed``, so they are
here. Parameters and buffers become constants of the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import tvm
from torch import fx
from torch.export import ExportedProgram
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from qcompiler import operators
from qcompiler.errors import FrontendError, UnsupportedOperatorError

Converter = Callable[[fx.Node, Any], relax.Expr]


_DTYPES = {torch.uint8: "uint8", torch.int8: "int8"}


def place(node: fx.Node) -> str:
    """Where a node comes from: its module's path, or the user's line of source, or the node's own name."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    if paths:
        return str(paths[-1])
    return source_line(node) or node.name


def source_line(node: fx.Node) -> str:
    """``file:line`` of the user's code that made the node, or an empty string."""
    trace = str(node.meta.get("stack_trace") or "")
    lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File ")]
    if not lines:
        return ""
    file, _, rest = lines[-1].removeprefix('File "').partition('", line ')
    return f"{file}:{rest.split(',')[0]}"


def _described(node: fx.Node) -> str:
    """An operator, its place and the user's line, for messages."""
    line = source_line(node)
    return f"operator {node.target} at {place(node)}{f' ({line})' if line else ''}"


def _value_dtype(node: fx.Node) -> str:
    """The dtype of what PyTorch computes, as TVM names it."""
    return str(node.meta["val"].dtype).removeprefix("torch.")


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def _dtype(node: fx.Node, dtype: Any) -> str:
    if dtype not in _DTYPES:
        raise FrontendError(
            f"{node.target} at {place(node)} has dtype {dtype}; quantized tensors are {' or '.join(_DTYPES.values())}"
        )
    return _DTYPES[dtype]


def _per_tensor(operator: Callable[..., relax.Expr], to_integer: bool) -> Converter:
    """Converter of ``(x, scale, zero_point, quant_min, quant_max, dtype)``."""

    def convert(node: fx.Node, importer: Any) -> relax.Expr:
        args: tuple[Any, ...] = node.args
        x, scale, zero_point, low, high, dtype = args[:6]
        quantized = _dtype(node, dtype)
        full = {"uint8": (0, 255), "int8": (-128, 127)}[quantized]
        if to_integer and (low, high) != full:
            raise FrontendError(
                f"{node.target} at {place(node)} has the range [{low}, {high}]; activations use all of {list(full)}"
            )
        scales = relax.const(float(scale), "float32")
        zeros = relax.const(int(zero_point), "int32")
        out_dtype = quantized if to_integer else "float32"
        return importer.block_builder.emit(
            operator(importer.env[x], scales, zeros, axis=-1, out_dtype=out_dtype)
        )

    return convert


def _per_channel(operator: Callable[..., relax.Expr], to_integer: bool) -> Converter:
    """Converter of ``(x, scales, zero_points, axis, quant_min, quant_max, dtype)``."""

    def convert(node: fx.Node, importer: Any) -> relax.Expr:
        args: tuple[Any, ...] = node.args
        x, scales, zero_points, axis, _, _, dtype = args[:7]
        quantized = _dtype(node, dtype)
        emit, env = importer.block_builder.emit, importer.env
        scale = emit(relax.op.astype(env[scales], "float32"))
        zero_point = emit(relax.op.astype(env[zero_points], "int32"))
        out_dtype = quantized if to_integer else "float32"
        return emit(operator(env[x], scale, zero_point, axis=int(axis), out_dtype=out_dtype))

    return convert


_CONVERTERS: dict[str, Converter] = {
    "quantize_per_tensor.default": _per_tensor(relax.op.quantize, True),
    "dequantize_per_tensor.default": _per_tensor(relax.op.dequantize, False),
    "quantize_per_channel.default": _per_channel(relax.op.quantize, True),
    "dequantize_per_channel.default": _per_channel(relax.op.dequantize, False),
}


def _reduction(operator: Callable[..., relax.Expr]) -> Converter:
    """Converter of ``(x, axes, keepdim)``; all axes if there are none."""

    def convert(node: fx.Node, importer: Any) -> relax.Expr:
        args: tuple[Any, ...] = node.args
        axes, keep = _argument(node, 1, "dim", None), _argument(node, 2, "keepdim", False)
        axes = [axes] if isinstance(axes, int) else (list(axes) if axes else None)
        return importer.block_builder.emit(operator(importer.env[args[0]], axes, bool(keep)))

    return convert


def _extreme(value: Callable[..., relax.Expr], position: Callable[..., relax.Expr]) -> Converter:
    """Converter of ``(x, axis, keepdim)`` to the extreme along an axis and the position of the first one."""

    def convert(node: fx.Node, importer: Any) -> relax.Expr:
        args: tuple[Any, ...] = node.args
        axis, keep = _argument(node, 1, "dim", None), bool(_argument(node, 2, "keepdim", False))
        x, emit = importer.env[args[0]], importer.block_builder.emit
        found = [emit(value(x, axis, keep)), emit(position(x, axis, keep))]
        return emit(relax.Tuple(found))

    return convert


def _scatter_add(node: fx.Node, importer: Any) -> relax.Expr:
    args: tuple[Any, ...] = node.args
    x, axis, index, source = (importer.env[a] if isinstance(a, fx.Node) else a for a in args)
    extents, emit = [int(d) for d in index.ty.shape], importer.block_builder.emit
    if extents != [int(d) for d in source.ty.shape]:
        source = emit(relax.op.strided_slice(source, list(range(len(extents))), [0] * len(extents), extents))
    return emit(relax.op.scatter_elements(x, index, source, axis, "add"))


def _norm_weights(node: fx.Node, importer: Any, extents: Sequence[int]) -> tuple[Any, Any]:
    """Weight and bias of a norm; ones and zeros where there are none."""
    weight, bias = (
        relax.const(np.full(extents, fill), _value_dtype(node)) if given is None else importer.env[given]
        for given, fill in (
            (_argument(node, 2, "weight", None), 1.0),
            (_argument(node, 3, "bias", None), 0.0),
        )
    )
    return weight, bias


def _layer_norm(node: fx.Node, importer: Any) -> relax.Expr:
    args: tuple[Any, ...] = node.args
    extents = [int(d) for d in args[1]]
    epsilon = _argument(node, 4, "eps", 1e-5)
    weight, bias = _norm_weights(node, importer, extents)
    axes = list(range(-len(extents), 0))
    return importer.block_builder.emit(
        relax.op.nn.layer_norm(importer.env[args[0]], weight, bias, axes, float(epsilon))
    )


def _group_norm(node: fx.Node, importer: Any) -> relax.Expr:
    args: tuple[Any, ...] = node.args
    x = importer.env[args[0]]
    epsilon = _argument(node, 4, "eps", 1e-5)
    weight, bias = _norm_weights(node, importer, [int(x.ty.shape[1])])
    axes = list(range(2, len(x.ty.shape)))
    return importer.block_builder.emit(
        relax.op.nn.group_norm(x, weight, bias, int(args[1]), 1, axes, float(epsilon))
    )


def _filled_like(number: float | None) -> Converter:
    """Converter of ``(x, number)``, or of ``(x)`` for a number that the operator's name says; TVM passes over the dtype."""

    def convert(node: fx.Node, importer: Any) -> relax.Expr:
        shape, dtype = list(node.meta["val"].shape), _value_dtype(node)
        filling = relax.const(node.args[1] if number is None else number, dtype)
        return importer.block_builder.emit(relax.op.full(shape, filling, dtype))

    return convert


_CONVERTERS |= {
    "zeros_like.default": _filled_like(0),
    "ones_like.default": _filled_like(1),
    "full_like.default": _filled_like(None),
    "layer_norm.default": _layer_norm,
    "group_norm.default": _group_norm,
    "amax.default": _reduction(relax.op.max),
    "amin.default": _reduction(relax.op.min),
    "prod.dim_int": _reduction(relax.op.prod),
    # TVM's own converters sort for them.
    "max.dim": _extreme(relax.op.max, relax.op.argmax),
    "min.dim": _extreme(relax.op.min, relax.op.argmin),
    "scatter_add.default": _scatter_add,
}


def _ignoring_importer(convert: Callable[[fx.Node], relax.Expr]) -> Converter:
    return lambda node, _importer: convert(node)


class _Importer(ExportedProgramImporter):  # type: ignore[misc]
    """TVM's importer, with the converters that it lacks and variables named after the user's modules."""

    def __init__(self, precisions: Mapping[str, str]) -> None:
        super().__init__()
        self.precisions = precisions
        for name in _WRONG:
            self.convert_map.pop(name, None)
        self.convert_map.update(_inplace_converters(self.convert_map))

    def wrapped(self, nodes: list[fx.Node]) -> dict[str, Converter]:
        """A converter for every operator of ``nodes``; an operator without one raises."""
        converters: dict[str, Converter] = {}
        for node in nodes:
            if node.op != "call_function":
                continue
            name = node.target.__name__  # type: ignore[union-attr]
            if name in _CONVERTERS:
                converters[name] = self._named(_CONVERTERS[name])
            elif name in self.convert_map:
                convert = self.convert_map[name]
                converters[name] = self._named(_ignoring_importer(convert))
            else:
                raise UnsupportedOperatorError(
                    f"{_described(node)} has no import into TVM; replace it in the model by supported operators"
                )
        return converters

    def _named(self, convert: Converter) -> Converter:
        def run(node: fx.Node, importer: Any) -> relax.Expr:
            if not isinstance(importer.block_builder, _NamingBuilder):
                importer.block_builder = _NamingBuilder(importer.block_builder)
            importer.block_builder.name = _layer_name(node)
            try:
                with self._rounded_input(node), self._promoted_inputs(node):
                    result = convert(node, importer)
                _check_result(node, result)
                return result
            except FrontendError:
                raise
            except Exception as error:  # TVM's converters raise whatever their operators raise
                raise UnsupportedOperatorError(
                    f"{_described(node)} cannot be imported: "
                    f"{str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__}"
                ) from error

        return run

    @contextmanager
    def _promoted_inputs(self, node: fx.Node) -> Iterator[None]:
        """While arithmetic of integers with floats is converted, the integers are floats."""
        held: dict[fx.Node, Any] = {}
        value = node.meta.get("val")
        if _base_name(node) in _PROMOTING and isinstance(value, torch.Tensor) and value.is_floating_point():
            for source in node.all_input_nodes:
                given = self.env[source]
                ty = getattr(given, "ty", None)
                if isinstance(ty, relax.TensorType) and "float" not in str(ty.dtype):
                    held[source] = given
                    self.env[source] = self.block_builder.emit(relax.op.astype(given, _value_dtype(node)))
        try:
            yield
        finally:
            self.env.update(held)

    @contextmanager
    def _rounded_input(self, node: fx.Node) -> Iterator[None]:
        """While a layer with a precision is converted, its input is marked with it."""
        precision, source = self.precisions.get(node.name), node.args[0] if node.args else None
        if precision is None or not isinstance(source, fx.Node):
            yield
            return
        held = self.env[source]
        self.env[source] = self.block_builder.emit(
            operators.call("qc.round_float", [held], precision=precision), "rounded"
        )
        try:
            yield
        finally:
            self.env[source] = held


_WRONG = ("_upsample_bilinear2d_aa.default",)
"""Converters of TVM that compute something else: this one passes over the filter against aliases."""

_PROMOTING = frozenset({"add", "sub", "rsub", "mul", "div", "pow", "true_divide"})
"""Operators in which PyTorch promotes integers to floats, and TVM's importer does not."""


def _base_name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0].rstrip("_")


def _check_result(node: fx.Node, result: Any) -> None:
    """Refuses a conversion to another shape than PyTorch's, or of integers to floats or back.

    Raises:
        UnsupportedOperatorError: it is such a one.
    """
    value, found = node.meta.get("val"), getattr(result, "ty", None)
    if not isinstance(value, torch.Tensor) or not isinstance(found, relax.TensorType) or not node.users:
        return  # nobody reads the statistics of a batch norm, which are empty
    shape, dtype = [int(d) for d in found.shape], str(found.dtype)
    if shape != list(value.shape) or value.is_floating_point() != ("float" in dtype):
        raise UnsupportedOperatorError(
            f"{_described(node)} is imported as {dtype} {shape}, and is {_value_dtype(node)} {list(value.shape)} in PyTorch; "
            "replace it in the model"
        )


def _inplace_converters(known: dict[str, Any]) -> dict[str, Any]:
    """Converters of in-place operators of aten (``elu_.default``) whose functional form is known."""
    converters = {}
    for name, convert in known.items():
        base, dot, overload = name.partition(".")
        inplace = f"{base}_.{overload}"
        if dot and not base.endswith("_") and inplace not in known and hasattr(torch.ops.aten, f"{base}_"):
            converters[inplace] = convert
    return converters


def _layer_name(node: fx.Node) -> str:
    """A name for the variables of a node: its module's path, or its own name where the path is lost.

    A weight that its layer's module dequantizes leaves the plain name to the layer.
    """
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    name = str(paths[-1]) if paths else node.name
    source = node.args[0] if node.args else None
    is_constant = isinstance(source, fx.Node) and source.op == "placeholder"
    dequantizes = node.op == "call_function" and node.target.__name__.startswith("dequantize_")  # type: ignore[union-attr]
    return f"{name}_dequantized" if is_constant and dequantizes else name


class _NamingBuilder:
    """A block builder that names what it emits after the node that is being converted."""

    def __init__(self, builder: relax.BlockBuilder) -> None:
        self._builder = builder
        self.name = ""

    def emit(self, expr: relax.Expr, name_hint: str = "") -> relax.Var:
        return self._builder.emit(expr, name_hint or self.name)

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._builder, attribute)


def importable_operators() -> frozenset[str]:
    """Names of the operators of aten that are imported, such as ``conv2d.default``."""
    return frozenset(_CONVERTERS) | frozenset(_Importer({}).convert_map)


def import_program(program: ExportedProgram, precisions: Mapping[str, str] | None = None) -> tvm.IRModule:
    """Imports an exported program.

    Args:
        program: with or without quantize and dequantize nodes.
        precisions: for nodes by their names the precision, ``bfloat16`` or ``float16``, that the node's first operand
            may be rounded to; it is marked by ``qc.round_float``.

    Returns:
        A module whose function ``main`` takes the user's inputs and returns a tuple of the user's outputs, with
        quantize and dequantize nodes as ``relax.quantize`` and ``relax.dequantize``.

    Raises:
        UnsupportedOperatorError: an operator has no import; the message names it and its place.
        FrontendError: quantized tensors have a dtype or range that no target has.
    """
    importer = _Importer(precisions or {})
    return importer.from_exported_program(
        program, False, False, False, importer.wrapped(list(program.graph.nodes))
    )
