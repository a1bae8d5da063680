"""ExecuTorch's portable runtime with XNNPACK."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def import_engine() -> None:
    import executorch.runtime  # noqa: F401
    import torch  # noqa: F401


def open_session(model: str, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    import torch
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime

    portable_lib._unsafe_reset_threadpool(threads)  # the only way that there is; nothing runs yet
    program: Any = Runtime.get().load_program(model)
    method: Any = program.load_method("forward")

    def run(inputs: Sequence[Any], _keep: Any = program) -> Sequence[Any]:
        outputs: Sequence[Any] = method.execute([torch.from_numpy(array) for array in inputs])
        return outputs

    return run
