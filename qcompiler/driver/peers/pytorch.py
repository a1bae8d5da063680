"""PyTorch in float32, eager and compiled."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.driver.data import Samples
from qcompiler.driver.peers.base import Peer, Session

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def prepare(program: ExportedProgram, calibration: Samples, folder: Path) -> Path:
    """Saves the model as it is."""
    import torch

    path = folder / "model.pt2"
    torch.export.save(program, path)
    return path


def eager(model: Path, threads: int) -> Session:
    return _session(model, threads, compiled=False)


def compiled(model: Path, threads: int) -> Session:
    return _session(model, threads, compiled=True)


def _session(model: Path, threads: int, *, compiled: bool) -> Session:
    import torch

    torch.set_num_threads(threads)
    module: Any = torch.export.load(model).module()
    if compiled:
        module = torch.compile(module)

    def run(inputs: Any) -> Any:
        with torch.inference_mode():
            return module(*(torch.from_numpy(array) for array in inputs))

    return run


def _no_compiler() -> str | None:
    if any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return None
    return "torch.compile needs a C++ compiler; none is on the PATH"


EAGER = Peer("torch", "float32", ("torch",), prepare, eager)
COMPILED = Peer("torch.compile", "float32", ("torch",), prepare, compiled, _no_compiler)
