"""What a captured program takes and returns, and which programs cannot be compiled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    OutputKind,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from qcompiler.errors import FrontendError
from qcompiler.frontend.decompose import decompose
from qcompiler.frontend.importer import importable_operators

_QUANTIZATION_NAMESPACES = frozenset({"quantized_decomposed", "torchao"})


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a program.

    Attributes:
        name: of an input the name of ``forward``'s argument; of an output ``output``, or ``output_<k>`` where there
            are several, or its key where ``forward`` returns a dictionary or a dataclass.
        shape: extents, all fixed.
        dtype: PyTorch's dtype.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype


def check(program: ExportedProgram) -> ExportedProgram:
    """Returns ``program`` if it can be compiled, in operators that are imported as far as they can be composed of such.

    Raises:
        FrontendError: it was exported in training mode; it writes to a buffer, a parameter or an input; an input is
            no tensor, is nested, is passed by keyword, or has a dynamic shape; a shape depends on values; it is not
            on the CPU; it returns no tensor.
    """
    _refuse_training(program)
    _refuse_structure(program)
    user_inputs(program)
    _refuse_shapes_from_values(program)
    _refuse_writes(program)
    _refuse_other_devices(program)
    if not user_outputs(program):
        raise FrontendError("forward returns no tensor; a compiled model must return at least one")
    return decompose(program, importable_operators())


def is_quantized(program: ExportedProgram) -> bool:
    """Whether the program carries quantize or dequantize operators already, as PT2E leaves them."""
    return any(_is_quantization(node) for node in program.graph.nodes if node.op == "call_function")


def user_inputs(program: ExportedProgram) -> list[TensorInfo]:
    """The inputs in the order of ``forward``'s arguments.

    Raises:
        FrontendError: an input is no tensor or has a dynamic shape.
    """
    specs = [s for s in program.graph_signature.input_specs if s.kind is InputKind.USER_INPUT]
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    names = [str(s.arg.name) for s in specs]
    signature = program.module_call_graph[0].signature
    given = (signature.forward_arg_names if signature is not None else None) or []
    if len(given) == len(names):  # the graph's names are these in lower case
        names = list(given)
    infos = []
    for name, spec in zip(names, specs, strict=True):
        if not isinstance(spec.arg, TensorArgument):
            value = f" ({spec.arg.value!r})" if isinstance(spec.arg, ConstantArgument) else ""
            raise FrontendError(
                f"input {name!r}{value} is no tensor; fix it inside the module, or leave it out, and export again"
            )
        infos.append(_tensor_info(name, nodes[spec.arg.name], "input"))
    return infos


def user_outputs(program: ExportedProgram) -> list[TensorInfo]:
    """The tensors that ``forward`` returns, nested ones flattened; None and other constants are left out.

    Raises:
        FrontendError: an output has a dynamic shape.
    """
    specs = [s for s in program.graph_signature.output_specs if s.kind is OutputKind.USER_OUTPUT]
    nodes = {node.name: node for node in program.graph.nodes}
    tree = program.call_spec.out_spec
    paths: list[Any] = [()] * len(specs)
    if tree is not None and tree.num_leaves == len(specs):
        paths = [path for path, _ in pytree.tree_flatten_with_path(tree.unflatten(range(len(specs))))[0]]
    tensors = [
        (p, s.arg.name) for p, s in zip(paths, specs, strict=True) if isinstance(s.arg, TensorArgument)
    ]
    names = ["_".join(_key(key) for key in path) for path, _ in tensors]
    if any(not name or name[0].isdigit() for name in names) or len(set(names)) != len(names):
        names = ["output"] if len(tensors) == 1 else [f"output_{k}" for k in range(len(tensors))]
    return [_tensor_info(name, nodes[node], "output") for name, (_, node) in zip(names, tensors, strict=True)]


def _key(key: Any) -> str:
    if isinstance(key, pytree.MappingKey):
        return str(key.key)
    if isinstance(key, pytree.GetAttrKey):
        return str(key.name)
    assert isinstance(key, pytree.SequenceKey), key
    return str(key.idx)


def _tensor_info(name: str, node: fx.Node, kind: str) -> TensorInfo:
    value = node.meta["val"]
    for axis, extent in enumerate(value.shape):
        if not isinstance(extent, int):
            raise FrontendError(
                f"{kind} {name!r} has a dynamic shape {[str(d) for d in value.shape]} (axis {axis} is {extent}); shapes "
                "are fixed when compiling: export without dynamic_shapes"
            )
    return TensorInfo(name, tuple(value.shape), value.dtype)


def _refuse_structure(program: ExportedProgram) -> None:
    args, kwargs = program.call_spec.in_spec.children()
    if kwargs.num_leaves:
        raise FrontendError(
            f"input {kwargs.context[0]!r} is passed by keyword; export with all inputs by position: "
            "torch.export.export(model, (inputs, ...))"
        )
    for k, argument in enumerate(args.children()):
        if not argument.is_leaf():
            raise FrontendError(
                f"argument {k} of forward is a {argument.type.__name__}; arguments must be tensors: give each tensor of "
                "it an argument of its own in a wrapping module"
            )


def _refuse_shapes_from_values(program: ExportedProgram) -> None:
    """Refuses operators whose result has as many elements as the data has it: masks, ``nonzero``, ``unique``."""
    for node in program.graph.nodes:
        values = node.meta.get("val")
        for value in values if isinstance(values, tuple | list) else (values,):
            if isinstance(value, torch.Tensor) and not all(isinstance(d, int) for d in value.shape):
                raise FrontendError(
                    f"the shape of {node.target} at {_place(node)} depends on the input's values "
                    f"({[str(d) for d in value.shape]}); shapes are fixed when compiling: use torch.where or a "
                    "multiplication by a mask, which keep the shape"
                )


def _refuse_other_devices(program: ExportedProgram) -> None:
    held = {**program.state_dict, **program.constants}
    for name, tensor in held.items():
        if isinstance(tensor, torch.Tensor) and tensor.device.type != "cpu":
            raise FrontendError(
                f"{name!r} is on device {tensor.device}; compiling needs the values on the CPU: call model.cpu() before "
                "exporting, and give example inputs there"
            )
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor) and value.device.type != "cpu":
            raise FrontendError(
                f"input {node.name!r} is on device {value.device}; export the model with example inputs on the CPU"
            )


def _refuse_training(program: ExportedProgram) -> None:
    """Refuses operators told to train; batch normalization without running statistics has no other mode."""
    for node in program.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        values = _arguments(node)
        if "running_mean" in values and values["running_mean"] is None:
            continue
        if values.get("training") is True or values.get("train") is True:
            raise FrontendError(
                f"the model was exported in training mode: {node.target} at {_place(node)} trains; call model.eval() "
                "before torch.export.export"
            )


def _refuse_writes(program: ExportedProgram) -> None:
    """Refuses programs that write to memory that outlives the call.

    Exported programs in the training form say nothing of that in their signature; the writing operators' schemas do.
    """
    signature = program.graph_signature
    declared = [
        *signature.buffers_to_mutate.values(),
        *signature.parameters_to_mutate.values(),
        *signature.user_inputs_to_mutate.values(),
    ]
    if declared:
        raise FrontendError(f"the model writes to {declared[0]!r} in forward; {_STATELESS}")
    for node in program.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        values = _arguments(node)
        for argument in node.target._schema.arguments:
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            root = _root(values[argument.name]) if isinstance(values.get(argument.name), fx.Node) else None
            if root is None:
                continue
            raise FrontendError(
                f"the model writes to {_holder(root, signature)} in forward ({node.target} at {_place(node)}); "
                f"{_STATELESS}"
            )


_STATELESS = "a compiled model keeps no state: compute a new tensor instead, without in-place operators"


def _holder(root: fx.Node, signature: ExportGraphSignature) -> str:
    """What the user calls the memory behind a placeholder."""
    for kind, held in (
        ("buffer", signature.inputs_to_buffers),
        ("parameter", signature.inputs_to_parameters),
        ("constant", signature.inputs_to_lifted_tensor_constants),
    ):
        if root.name in held:
            return f"its {kind} {held[root.name]!r}"
    return f"its input {root.name!r}"


def _root(node: fx.Node) -> fx.Node | None:
    """The placeholder or constant whose memory the value of ``node`` shares, or None."""
    while node.op == "call_function":
        source = _aliased(node)
        if source is None:
            return None
        node = source
    return node


def _aliased(node: fx.Node) -> fx.Node | None:
    """The argument whose memory the value of ``node`` may share, or None."""
    if not isinstance(node.target, torch._ops.OpOverload):  # getitem of an operator with several results
        sources = node.all_input_nodes
        return sources[0] if sources else None
    schema = node.target._schema
    if all(result.alias_info is None for result in schema.returns):
        return None
    values = _arguments(node)
    for argument in schema.arguments:
        value = values.get(argument.name)
        if argument.alias_info is not None and isinstance(value, fx.Node):
            return value
    return None


def _arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of a call of an operator by name; those left at their defaults are absent."""
    names = [a.name for a in node.target._schema.arguments]  # type: ignore[union-attr]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _is_quantization(node: fx.Node) -> bool:
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    namespace, _, name = node.target._schema.name.partition("::")
    return namespace in _QUANTIZATION_NAMESPACES and name.startswith(("quantize_", "dequantize_"))


def _place(node: fx.Node) -> str:
    """The module's path, or the node's name where the operator stands in the outermost forward."""
    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values() if path]
    return str(paths[-1]) if paths else node.name
