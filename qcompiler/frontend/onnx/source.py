"""Reading an ONNX file: what is there, of which version, and the extents of its inputs."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.errors import ConfigError, FrontendError

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

log = logging.getLogger(__name__)

FIRST_OPSET = 7
"""Operators broadcast as NumPy does from this version of the operator set on."""

Shape = tuple[int, ...]


@dataclass(frozen=True)
class GraphInput:
    """An input of the graph.

    Attributes:
        name: its name in the file.
        argument: the same as a Python identifier; the name of the program's input.
        shape: extents, all fixed.
        dtype: PyTorch's dtype.
    """

    name: str
    argument: str
    shape: Shape
    dtype: torch.dtype


def load_onnx(
    path: str | Path,
    dims: Mapping[str, int] | None = None,
    shapes: Sequence[Shape] | None = None,
) -> ExportedProgram:
    """Reads an ONNX file and exports it for inference.

    Args:
        path: the file; external data lies where it says.
        dims: values of symbolic extents by their names (``batch``), or by input and axis (``x.0``). The first axis of
            an input is 1 if nothing is said of it.
        shapes: extents of the inputs, in their order, instead of ``dims``.

    Raises:
        ConfigError: the package onnx is missing, or ``dims`` names what the model does not have.
        FrontendError: the file is missing or damaged, an extent is unknown, or its opset is too old.
        UnsupportedOperatorError: an operator has no conversion; the message names it and its node.
    """
    path = Path(path)
    onnx = require_onnx()
    import torch

    from qcompiler.frontend.onnx.convert import to_module
    from qcompiler.frontend.program import check

    model = read(path)
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    inputs = graph_inputs(model.graph, dict(dims or {}), shapes)
    module = to_module(model, inputs)
    examples = tuple(torch.zeros(i.shape, dtype=i.dtype) for i in inputs)
    with torch.no_grad():
        try:
            program = torch.export.export(module, examples)
        except Exception as error:  # the tracer raises whatever operators raise
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise FrontendError(f"model {path} cannot be exported by PyTorch: {line}") from error
    return check(program)


def require_onnx() -> Any:
    """The package onnx.

    Raises:
        ConfigError: it is not installed.
    """
    if importlib.util.find_spec("onnx") is None:
        raise ConfigError("ONNX models need the package onnx: pip install 'qcompiler[onnx]'")
    import onnx
    import onnx.inliner

    return onnx


def read(path: Path) -> Any:
    """The ``ModelProto`` of a file, external data included.

    Raises:
        FrontendError: the file is missing, is no ONNX model, or lacks its external data.
    """
    onnx = require_onnx()
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise FrontendError(
            f"model {path} is {'a folder' if path.is_dir() else 'missing'}; give an .onnx file"
        )
    try:
        model = onnx.load(str(path))
    except DecodeError as error:
        raise FrontendError(
            f"model {path} is no ONNX model or is damaged: {error}; export it again"
        ) from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise FrontendError(
            f"model {path} cannot be read: {reason}; its external data must lie beside it"
        ) from error
    if not model.graph.node and not model.graph.output:
        raise FrontendError(f"model {path} holds no graph; it is no ONNX model, or it is empty")
    opset = default_opset(model)
    newest = onnx.defs.onnx_opset_version()
    if not FIRST_OPSET <= opset <= newest:
        raise FrontendError(
            f"model {path} has opset {opset}; known are {FIRST_OPSET} to {newest}: convert it with "
            "onnx.version_converter.convert_version, or install a newer onnx"
        )
    return model


def default_opset(model: Any) -> int:
    """Version of the operator set ``ai.onnx``; 1 where the model names none."""
    return next((int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)


def graph_inputs(graph: Any, dims: dict[str, int], shapes: Sequence[Shape] | None) -> list[GraphInput]:
    """The inputs that are no initializers, with fixed extents.

    Raises:
        ConfigError: ``dims`` or ``shapes`` do not fit the model.
        FrontendError: an extent is unknown, or an input is no tensor.
    """
    from qcompiler.frontend.onnx.node import torch_dtype

    held = {tensor.name for tensor in graph.initializer}
    values = [value for value in graph.input if value.name not in held]
    if not values:
        raise FrontendError("the ONNX model has no input; a compiled model takes at least one")
    if shapes is not None and len(shapes) != len(values):
        raise ConfigError(f"{len(shapes)} shapes are given; the ONNX model has {len(values)} inputs")
    used: set[str] = set()
    inputs: list[GraphInput] = []
    for position, value in enumerate(values):
        if value.type.WhichOneof("value") != "tensor_type":
            raise FrontendError(f"input {value.name!r} is no tensor; compiled models take tensors only")
        tensor = value.type.tensor_type
        given = None if shapes is None else shapes[position]
        shape = _shape(value.name, tensor, dims, used, given)
        argument = _identifier(value.name, {i.argument for i in inputs})
        dtype = torch_dtype(int(tensor.elem_type), f"input {value.name!r}")
        inputs.append(GraphInput(value.name, argument, shape, dtype))
    unknown = sorted(set(dims) - used)
    if unknown:
        known = ", ".join(sorted(_symbols(values))) or "none; all its extents are fixed"
        raise ConfigError(f"dim {unknown[0]!r} is no symbolic extent of the model; it has: {known}")
    return inputs


def _shape(name: str, tensor: Any, dims: Mapping[str, int], used: set[str], given: Shape | None) -> Shape:
    if not tensor.HasField("shape"):
        if given is None:
            raise FrontendError(f"input {name!r} has no shape in the file; give example_inputs")
        return given
    declared = list(tensor.shape.dim)
    if given is not None:
        fixed = [int(d.dim_value) if d.HasField("dim_value") else None for d in declared]
        if len(given) != len(fixed) or any(
            f is not None and f != g for f, g in zip(fixed, given, strict=True)
        ):
            wanted = [str(f) if f is not None else "any" for f in fixed]
            raise ConfigError(
                f"input {name!r} has shape [{', '.join(wanted)}] in the file, not {list(given)}"
            )
        return given
    extents = []
    for axis, dim in enumerate(declared):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            extents.append(int(dim.dim_value))
            continue
        keys = [key for key in (dim.dim_param, f"{name}.{axis}") if key]
        key = next((key for key in keys if key in dims), None)
        used.update(key for key in keys if key in dims)
        if key is not None:
            extents.append(dims[key])
        elif axis == 0:
            log.info("axis 0 of input %r is symbolic (%s); compiled for 1", name, keys[0])
            extents.append(1)
        else:
            raise FrontendError(
                f"axis {axis} of input {name!r} is symbolic; shapes are fixed when compiling: say what it is with "
                f"--dim {keys[0]}=N (in Python dim=('{keys[0]}=N',), or example_inputs)"
            )
    return tuple(extents)


def _symbols(values: Sequence[Any]) -> set[str]:
    return {
        dim.dim_param or f"{value.name}.{axis}"
        for value in values
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if not dim.HasField("dim_value")
    }


def _identifier(name: str, taken: set[str]) -> str:
    """``name`` as a Python identifier that is not taken."""
    base = re.sub(r"\W", "_", name)
    base = base if base and not base[0].isdigit() else f"input_{base}"
    made, count = base, 1
    while made in taken:
        made, count = f"{base}_{count}", count + 1
    return made
