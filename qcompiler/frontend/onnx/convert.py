"""From an ONNX graph to a torch module: node by node, in the graph's order.

What depends on no input is computed at once and becomes a constant, shapes included, because extents are fixed. Every
other node becomes a module with the node's name, and is computed on tensors without values, which gives the shapes that later
conversions ask for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qcompiler.errors import FrontendError, QCompilerError, UnsupportedOperatorError
from qcompiler.frontend.onnx import elementwise, layers, movement, pooling, quantization, reductions
from qcompiler.frontend.onnx.node import Call, Constant, Node, Operand, Runtime, Value, as_tensor
from qcompiler.frontend.onnx.source import GraphInput, default_opset

Converter = Callable[[Node], Call | Value]

CONVERTERS: Mapping[str, Converter] = {
    **elementwise.CONVERTERS,
    **layers.CONVERTERS,
    **movement.CONVERTERS,
    **pooling.CONVERTERS,
    **quantization.CONVERTERS,
    **reductions.CONVERTERS,
}
"""For each operator, by its name (of another domain than ONNX's own, ``domain.name``), what converts a node."""


def to_module(model: Any, inputs: Sequence[GraphInput]) -> fx.GraphModule:
    """The module that computes a graph.

    Args:
        model: a ``ModelProto`` without local functions.
        inputs: the graph's inputs with fixed extents.

    Returns:
        A module that takes the inputs by position and returns a dictionary of the graph's outputs. Its submodules are
        called as the nodes of the ONNX graph are.

    Raises:
        UnsupportedOperatorError: a node cannot be converted; the message names the operator and the node.
        FrontendError: the graph is malformed.
    """
    with torch.no_grad():
        return _Graph(model, inputs).module()


class _Operation(nn.Module):
    """A node's computation with the constants that it reads."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call
        self.names: list[str | None] = []
        for position, operand in enumerate(call.operands):
            if isinstance(operand, Runtime):
                self.names.append(None)
                continue
            self.names.append(f"constant_{position}")
            self.register_buffer(f"constant_{position}", operand)

    def forward(self, *values: torch.Tensor) -> Any:
        runtime = iter(values)
        operands = [next(runtime) if name is None else getattr(self, name) for name in self.names]
        return self.call.function(*operands)


class _Graph:
    def __init__(self, model: Any, inputs: Sequence[GraphInput]) -> None:
        from onnx import numpy_helper

        self.proto = model.graph
        self.opsets = {str(o.domain): int(o.version) for o in model.opset_import}
        self.opset = default_opset(model)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.root = nn.Module()
        self.graph = fx.Graph()
        self.values: dict[str, Value] = {}
        self.nodes: dict[str, fx.Node] = {}
        self.targets: set[str] = set()
        for tensor in self.proto.initializer:
            self.values[tensor.name] = Constant(numpy_helper.to_array(tensor))
        for info in inputs:
            self.nodes[info.name] = self.graph.placeholder(info.argument)
            with self.mode:
                self.values[info.name] = Runtime(info.name, torch.empty(info.shape, dtype=info.dtype))
        self.users = Counter(name for node in self.proto.node for name in node.input)
        self.users.update(value.name for value in self.proto.output)
        self.done: set[int] = set()

    def module(self) -> fx.GraphModule:
        for position, proto in enumerate(self.proto.node):
            if position not in self.done:
                self._convert(position, proto)
        outputs = {
            value.name: self._read(value.name, self._output(value.name)) for value in self.proto.output
        }
        self.graph.output(outputs)
        return fx.GraphModule(self.root, self.graph).eval()

    def _output(self, name: str) -> Runtime:
        value = self.values.get(name)
        if value is None:
            raise FrontendError(f"output {name!r} of the ONNX graph is computed by no node; export it again")
        if not isinstance(value, Runtime):
            raise FrontendError(
                f"output {name!r} of the ONNX graph is constant: it depends on no input; remove it from the outputs"
            )
        return value

    def _convert(self, position: int, proto: Any) -> None:
        node = self._node(position, proto)
        convert = CONVERTERS.get(node.op_type)
        if convert is None:
            raise UnsupportedOperatorError(f"{node.op_type} at node {node.name!r}: {_advice(node.op_type)}")
        try:
            result = convert(node)
            if isinstance(result, Call):
                self._emit(node, self._with_bias(node, result) if result.takes_bias else result)
            else:
                self._define(node.outputs[0], result)
        except QCompilerError:
            raise
        except Exception as error:  # torch's operators raise whatever does not fit their operands
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UnsupportedOperatorError(
                f"{node.op_type} at node {node.name!r} (opset {node.opset}) cannot be converted: {line}"
            ) from error

    def _node(self, position: int, proto: Any) -> Node:
        from onnx import helper

        domain = "" if proto.domain == "ai.onnx" else str(proto.domain)
        op_type = f"{domain}.{proto.op_type}" if domain else str(proto.op_type)
        name = str(proto.name) or f"{proto.op_type}_{position}"
        values: list[Value | None] = []
        for source in proto.input:
            if source and source not in self.values:
                raise FrontendError(
                    f"{op_type} at node {name!r} reads {source!r}, which no node before it computes; the graph must be "
                    "in topological order: export it again"
                )
            values.append(self.values[source] if source else None)
        attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
        opset = self.opsets.get(domain, self.opset) if domain else self.opset
        return Node(op_type, name, opset, attributes, values, [str(o) for o in proto.output])

    def _define(self, name: str, value: Value) -> None:
        """Gives ``name`` a value that exists already, or a constant."""
        if isinstance(value, Runtime):
            self.nodes[name] = self.nodes[value.name]
            value = Runtime(name, value.tensor, value.shifted)
        self.values[name] = value

    def _emit(self, node: Node, call: Call) -> None:
        names = call.outputs or tuple(node.outputs)
        operation = _Operation(call)
        sources = [operand for operand in call.operands if isinstance(operand, Runtime)]
        reads_shifted = node.op_type == "DequantizeLinear"
        with self.mode if sources else nullcontext():
            examples = [s.tensor if reads_shifted or not s.shifted else _unshifted(s.tensor) for s in sources]
            results = operation(*examples)
        several = isinstance(results, tuple | list)
        tensors = list(results) if several else [results]
        if len(tensors) < len([name for name in names if name]):
            node.refuse(f"result {names[len(tensors)]!r} is used; only the first is known")
        if not sources:
            for name, tensor in zip(names, tensors, strict=False):
                self.values[name] = Constant(tensor.numpy(force=True))
            return
        arguments = tuple(self.nodes[s.name] if reads_shifted else self._read(s.name, s) for s in sources)
        made = self.graph.call_module(self._target(node.name, operation), arguments)
        for position, (name, tensor) in enumerate(zip(names, tensors, strict=False)):
            if not name:
                continue
            self.values[name] = Runtime(name, tensor, call.shifted)
            self.nodes[name] = self.graph.call_function(_item, (made, position)) if several else made

    def _read(self, name: str, value: Runtime) -> fx.Node:
        """The graph's node of a value, with int8 as int8."""
        node = self.nodes[name]
        return self.graph.call_function(_unshifted, (node,)) if value.shifted else node

    def _target(self, name: str, operation: _Operation) -> str:
        """Adds a submodule under the node's name, which may have dots in it."""
        parts = [part or "_" for part in name.split(".")]
        target, count = ".".join(parts), 1
        while target in self.targets or not self._free(target):
            target, count = f"{'.'.join(parts)}_{count}", count + 1
        self.targets.add(target)
        owner = self.root
        for part in target.split(".")[:-1]:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = getattr(owner, part)
        owner.add_module(target.rpartition(".")[2], operation)
        return target

    def _free(self, target: str) -> bool:
        """Whether no module, and no attribute of one, stands where ``target`` would."""
        owner: Any = self.root
        parts = target.split(".")
        for part in parts[:-1]:
            if part not in owner._modules:
                return not hasattr(owner, part)
            owner = owner._modules[part]
        return not hasattr(owner, parts[-1])

    def _with_bias(self, node: Node, call: Call) -> Call:
        """A matrix product with the constant that is added to it next, where nothing else reads the product."""
        name = node.outputs[0]
        for position, proto in enumerate(self.proto.node):
            if self.users[name] != 1 or name not in proto.input:
                continue
            others = [self.values.get(source) for source in proto.input if source != name]
            if proto.op_type != "Add" or proto.domain not in ("", "ai.onnx") or len(others) != 1:
                return call
            bias = others[0]
            if not isinstance(bias, Constant) or bias.array.dtype != np.float32:
                return call
            weight = call.operands[1]
            channels = int(weight.tensor.shape[0] if isinstance(weight, Runtime) else weight.shape[0])
            if bias.array.shape != (channels,):
                return call
            self.done.add(position)
            operands: list[Operand] = [*call.operands, as_tensor(bias.array)]
            return Call(call.function, operands, outputs=(str(proto.output[0]),))
        return call


def _item(results: Sequence[torch.Tensor], position: int) -> torch.Tensor:
    return results[position]


def _unshifted(tensor: torch.Tensor) -> torch.Tensor:
    """int8 from the uint8 that is 128 higher."""
    return (tensor.to(torch.int16) - quantization.SHIFT).to(torch.int8)


_QOPERATOR = frozenset(
    {
        "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "com.microsoft.QGemm",
        "com.microsoft.QLinearAdd", "com.microsoft.QLinearMul", "com.microsoft.QLinearAveragePool",
        "com.microsoft.QLinearGlobalAveragePool", "com.microsoft.QLinearConcat", "com.microsoft.QLinearSigmoid",
        "com.microsoft.QLinearLeakyRelu", "com.microsoft.QLinearSoftmax",
    }
)  # fmt: skip


def _advice(op_type: str) -> str:
    if op_type in _QOPERATOR:
        return (
            "models in QOperator form are not taken; quantize with quant_format=QuantFormat.QDQ, which says the same "
            "with QuantizeLinear and DequantizeLinear"
        )
    if op_type == "DynamicQuantizeLinear" or op_type.startswith("com.microsoft.DynamicQuantize"):
        return "scales found at run time have no integer kernel; quantize statically, with calibration data"
    if op_type in ("If", "Loop", "Scan"):
        return "control flow is not taken; export the model without it, or simplify it with fixed shapes"
    return "it has no conversion; replace it in the model by supported operators (docs/onnx.md lists them)"
