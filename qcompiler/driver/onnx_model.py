"""A quantized model as a QDQ ONNX model, for ONNX Runtime and TensorRT.

torch writes the graph; what it leaves is brought into the form that engines look for: weights transposed in the file
instead of by a node behind DequantizeLinear, biases as int32 at the scale of their accumulator, activations in int8 where
that is asked for.
"""

from __future__ import annotations

import importlib.util
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export import ExportedProgram

from qcompiler.config import CompileConfig
from qcompiler.driver.quantized import Calibration, Model, program_of, quantized_program
from qcompiler.errors import ConfigError, FrontendError
from qcompiler.frontend.onnx.source import require_onnx
from qcompiler.runtime.manifest import FloatRecord, OptimizationRecord
from qcompiler.targets import registry

Array = NDArray[Any]

Engine = Literal["onnxruntime", "tensorrt"]

ZERO_OF_INT8 = 128
"""The zero point of uint8 that is 0 in int8."""

_WEIGHTED = {"Conv": 2, "Gemm": 2}
"""Operators with a bias, and its position."""


@dataclass(frozen=True)
class OnnxExport:
    """The file that :func:`export_onnx` wrote.

    Attributes:
        path: the file.
        size: bytes.
        opset: version of its operator set.
        operators: how many nodes it has of each operator.
        layers: convolutions and matrix products with 8-bit weights.
        float_operators: what quantization left in float.
        optimizations: what was tried to lower the error of quantization, and what it gained.
    """

    path: Path
    size: int
    opset: int
    operators: dict[str, int]
    layers: int
    float_operators: tuple[FloatRecord, ...]
    optimizations: tuple[OptimizationRecord, ...]


def export_onnx(
    model: Model,
    config: CompileConfig,
    *,
    calibration: Calibration,
    output: str | Path,
    engine: Engine = "onnxruntime",
    example_inputs: tuple[torch.Tensor, ...] | None = None,
) -> OnnxExport:
    """Quantizes a model, if it is not, and writes it as a QDQ ONNX model.

    Args:
        model: as for :func:`qcompiler.driver.compile.compile_model`.
        config: how it is quantized.
        calibration: as for compiling; not needed for a model that is quantized already.
        output: the file to write.
        engine: ``onnxruntime``: uint8 activations, int32 biases. ``tensorrt``: int8 activations with zero point 0, which
            the model must have been quantized for (``symmetric_activations``), and float biases.
        example_inputs: as for compiling.

    Raises:
        ConfigError: onnx or onnxscript is missing, the engine is unknown, or its zero points are not the model's.
        FrontendError: torch cannot write an operator, or the file cannot be written.
        QCompilerError: the model cannot be read or quantized.
    """
    require_onnx()
    if importlib.util.find_spec("onnxscript") is None:
        raise ConfigError("writing ONNX models needs the package onnxscript: pip install 'qcompiler[onnx]'")
    if engine not in get_args(Engine):
        raise ConfigError(f"unknown engine {engine!r}; known: {', '.join(get_args(Engine))}")
    program = program_of(model, example_inputs, config)
    quantized = quantized_program(program, registry.resolve(config.target), config, calibration)
    made = to_qdq(quantized.program, engine)
    path = Path(output)
    _write(made, path)
    operators = Counter(str(node.op_type) for node in made.graph.node)
    layers = sum(1 for _ in _weights(_Graph(made)))
    opset = int(made.opset_import[0].version)
    return OnnxExport(
        path,
        path.stat().st_size,
        opset,
        dict(sorted(operators.items())),
        layers,
        quantized.float_operators,
        quantized.optimizations,
    )


def to_qdq(program: ExportedProgram, engine: Engine = "onnxruntime") -> Any:
    """The QDQ ``ModelProto`` of a program in PT2E form.

    Raises:
        ConfigError: ``engine`` needs zero points that the program does not have.
        FrontendError: torch cannot write an operator.
    """
    onnx = require_onnx()
    try:
        written = torch.onnx.export(
            program, (), dynamo=True, external_data=False, verbose=False, optimize=True
        )
    except Exception as error:  # torch's exporter raises whatever its translations raise
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FrontendError(f"the model cannot be written as ONNX by PyTorch: {line}") from error
    assert written is not None
    graph = _Graph(written.model_proto)
    _transpose_weights(graph)
    if engine == "tensorrt":
        _check_symmetric(graph)
        _store_signed(graph)
    else:
        _quantize_biases(graph)
    made = graph.finish()
    onnx.checker.check_model(made, full_check=True)
    return made


def _write(made: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(made.SerializeToString())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise FrontendError(f"{path} cannot be written: {error}") from error


class _Graph:
    """A graph whose constants are arrays by name, and whose nodes are found by their results."""

    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self.model = model
        self.nodes = list(model.graph.node)
        self.constants: dict[str, Array] = {
            tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
        }
        self.producers = {name: node for node in self.nodes for name in node.output}

    def node(self, name: str, operator: str) -> Any | None:
        """The node of ``operator`` that computes ``name``, or None."""
        node = self.producers.get(name)
        return node if node is not None and node.op_type == operator else None

    def add(self, base: str, array: Array) -> str:
        """Name of a new constant."""
        name, count = base, 1
        while name in self.constants or name in self.producers:
            name, count = f"{base}_{count}", count + 1
        self.constants[name] = array
        return name

    def insert(self, node: Any, before: Any) -> None:
        position = next(k for k, other in enumerate(self.nodes) if other is before)
        self.nodes.insert(position, node)
        self.producers.update(dict.fromkeys(node.output, node))

    def parameters(self, node: Any) -> tuple[Array, Array]:
        """Scale and zero point of a quantize or dequantize node."""
        return self.constants[node.input[1]], self.constants[node.input[2]]

    def finish(self) -> Any:
        """The model with what is read of nodes and constants."""
        from onnx import numpy_helper

        needed = {value.name for value in self.model.graph.output}
        kept = []
        for node in reversed(self.nodes):
            if any(name in needed for name in node.output):
                kept.append(node)
                needed.update(node.input)
        del self.model.graph.node[:]
        self.model.graph.node.extend(reversed(kept))
        del self.model.graph.initializer[:]
        self.model.graph.initializer.extend(
            numpy_helper.from_array(
                np.asarray(array, order="C"), name
            )  # ascontiguousarray makes scalars arrays
            for name, array in self.constants.items()
            if name in needed
        )
        # Types of values that are no longer what they were; whoever reads the file infers them.
        del self.model.graph.value_info[:]
        return self.model


def _weights(graph: _Graph) -> Iterator[tuple[Any, Any]]:
    """Each convolution and matrix product on a quantized weight, with the weight's dequantize node."""
    for node in list(graph.nodes):
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        dequantize = graph.node(node.input[1], "DequantizeLinear")
        if dequantize is not None and dequantize.input[0] in graph.constants:
            yield node, dequantize


def _transpose_weights(graph: _Graph) -> None:
    """``Transpose(DequantizeLinear(w))`` -> ``DequantizeLinear`` of the transposed ``w``."""
    from onnx import helper

    for node in list(graph.nodes):
        if node.op_type != "Transpose":
            continue
        inner = graph.node(node.input[0], "DequantizeLinear")
        if inner is None or inner.input[0] not in graph.constants:
            continue
        values = graph.constants[inner.input[0]]
        attributes = {a.name: helper.get_attribute_value(a) for a in inner.attribute}
        order = next(
            (list(a.ints) for a in node.attribute if a.name == "perm"), list(range(values.ndim))[::-1]
        )
        if graph.constants[inner.input[1]].size > 1:
            attributes["axis"] = order.index(int(attributes.get("axis", 1)) % values.ndim)
        name = graph.add(f"{inner.input[0]}_transposed", np.transpose(values, order))
        operands = [name, *inner.input[1:]]
        made = helper.make_node("DequantizeLinear", operands, list(node.output), node.name, **attributes)
        graph.insert(made, node)
        graph.nodes = [other for other in graph.nodes if other is not node]


def _quantize_biases(graph: _Graph) -> None:
    """Float biases of layers on quantized operands become int32 at the scale of the accumulator."""
    from onnx import helper

    for node, weight in _weights(graph):
        position = _WEIGHTED.get(node.op_type)
        if position is None or len(node.input) <= position or node.input[position] not in graph.constants:
            continue
        source = graph.node(node.input[0], "DequantizeLinear")
        if source is None or graph.constants[source.input[1]].size != 1:
            continue
        bias = graph.constants[node.input[position]]
        unit = (graph.parameters(source)[0].reshape(()) * graph.parameters(weight)[0].reshape(-1)).astype(
            np.float32
        )
        steps = np.rint(bias.astype(np.float64) / unit)
        if (
            bias.dtype != np.float32
            or bias.ndim != 1
            or np.abs(steps).max(initial=0.0) > np.iinfo(np.int32).max
        ):
            continue
        scale = np.ascontiguousarray(np.broadcast_to(unit, bias.shape))
        name = node.input[position]
        operands = [
            graph.add(f"{name}_quantized", steps.astype(np.int32)),
            graph.add(f"{name}_scale", scale),
            graph.add(f"{name}_zero_point", np.zeros(bias.shape, np.int32)),
        ]
        result = f"{name}_of_{node.output[0]}"
        made = helper.make_node("DequantizeLinear", operands, [result], f"{node.name}_bias", axis=0)
        graph.insert(made, node)
        node.input[position] = result


def _activations(graph: _Graph) -> Iterator[Any]:
    """Quantize and dequantize nodes of activations, and of constants in uint8."""
    for node in graph.nodes:
        if (
            node.op_type in ("QuantizeLinear", "DequantizeLinear")
            and graph.parameters(node)[1].dtype == np.uint8
        ):
            yield node


def _check_symmetric(graph: _Graph) -> None:
    """TensorRT takes activations in int8 with zero point 0 alone."""
    found = [(node.name, int(graph.parameters(node)[1].reshape(()))) for node in _activations(graph)]
    wrong = [(name, zero) for name, zero in found if zero != ZERO_OF_INT8]
    if wrong:
        name, zero = wrong[0]
        raise ConfigError(
            f"TensorRT takes int8 activations with zero point 0 (here: uint8 with {ZERO_OF_INT8}); {len(wrong)} of "
            f"{len(found)} nodes have others, as {name} with {zero}: quantize the float model with "
            "--symmetric-activations"
        )


def _store_signed(graph: _Graph) -> None:
    """uint8 with zero point z -> int8 with zero point z - 128: the same real numbers."""
    nodes = list(_activations(graph))
    for value in (*graph.model.graph.input, *graph.model.graph.output):
        if value.type.tensor_type.elem_type == 2:  # TensorProto.UINT8
            raise ConfigError(
                f"{value.name!r} is a uint8 input or output of the model; TensorRT takes float ones: put a dequantize "
                "behind it"
            )
    for node in nodes:
        zero = graph.parameters(node)[1].astype(np.int64) - ZERO_OF_INT8
        node.input[2] = graph.add(f"{node.input[2]}_int8", zero.astype(np.int8))
        values = graph.constants.get(node.input[0])
        if values is not None and values.dtype == np.uint8:
            shifted = (values.astype(np.int64) - ZERO_OF_INT8).astype(np.int8)
            node.input[0] = graph.add(f"{node.input[0]}_int8", shifted)
