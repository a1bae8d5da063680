"""Small ONNX models for tests, and what ONNX Runtime computes with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]
Shape = Sequence[int | str]

IR_VERSION = 10
"""Of the files, so that an older ONNX Runtime takes them; the opset says what the nodes mean."""


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, Shape],
    outputs: Sequence[str],
    constants: Mapping[str, Array] | None = None,
    *,
    opset: int = 21,
    dtypes: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """A model of ``nodes``; inputs and outputs are float32 unless ``dtypes`` says otherwise."""
    types = dtypes or {}
    graph = helper.make_graph(
        list(nodes),
        "test",
        [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), None) for n in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def save(made: onnx.ModelProto, path: Path) -> Path:
    onnx.save(made, str(path))
    return path


def run(made: onnx.ModelProto | Path, inputs: Mapping[str, Array], *, optimized: bool = False) -> list[Array]:
    """What ONNX Runtime computes; without its optimizations each node as the standard says."""
    options = onnxruntime.SessionOptions()
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(made) if isinstance(made, Path) else made.SerializeToString()
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    outputs: list[Array] = session.run(None, dict(inputs))
    return outputs
