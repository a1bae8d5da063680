"""OpenVINO with its hint for latency, and its cache of compiled models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def import_engine() -> None:
    import openvino  # noqa: F401


def open_session(model: str, threads: int, precision: str = "") -> Callable[[Sequence[Any]], Sequence[Any]]:
    import openvino

    options = {
        **({"INFERENCE_PRECISION_HINT": precision} if precision else {}),
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "CACHE_DIR": str(Path(model).with_name("cache")),
    }
    compiled = openvino.Core().compile_model(model, "CPU", options)
    count = len(compiled.outputs)

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        results = compiled(list(inputs), share_inputs=True, share_outputs=True)
        return [results[k] for k in range(count)]

    return run


def open_float32_session(model: str, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    return open_session(model, threads, "f32")


def open_bfloat16_session(model: str, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    return open_session(model, threads, "bf16")
