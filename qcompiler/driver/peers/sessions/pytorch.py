"""PyTorch in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def import_engine() -> None:
    import torch  # noqa: F401


def eager(model: str, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    return _session(model, threads, compiled=False)


def compiled(model: str, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    return _session(model, threads, compiled=True)


def _session(model: str, threads: int, *, compiled: bool) -> Callable[[Sequence[Any]], Sequence[Any]]:
    import torch

    torch.set_num_threads(threads)
    module: Any = torch.export.load(model).module()
    if compiled:
        module = torch.compile(module)

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        with torch.inference_mode():
            result = module(*(torch.from_numpy(array) for array in inputs))
        return [result] if isinstance(result, torch.Tensor) else list(result)

    return run
