"""ONNX Runtime on one thread pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def import_engine() -> None:
    import onnxruntime  # noqa: F401


def open_session(model: str, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.enable_cpu_mem_arena = True
    options.enable_mem_pattern = True
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    loaded = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in loaded.get_inputs()]

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        outputs: Sequence[Any] = loaded.run(None, dict(zip(names, inputs, strict=True)))
        return outputs

    return run
