"""A package of PyTorch's ahead-of-time Inductor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def import_engine() -> None:
    import torch
    import torch._inductor.package  # noqa: F401


def open_session(model: str, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    import torch
    from torch._inductor import aoti_load_package

    torch.set_num_threads(threads)
    loaded: Any = aoti_load_package(model)

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        with torch.inference_mode():
            result = loaded(*(torch.from_numpy(array) for array in inputs))
        return [result] if isinstance(result, torch.Tensor) else list(result)

    return run
