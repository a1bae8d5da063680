"""A library of TVM's own flow, run by its virtual machine without its compiler."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

_CPU, _DEVICE, _POOLED = 1, 0, 2
"""The virtual machine's device (DLPack's code of the CPU) and its allocator, the default."""


def import_engine() -> None:
    # The runtime library alone: the compiler's, of 259 MB, is of no use to a library that is compiled.
    os.environ["TVM_USE_RUNTIME_LIB"] = "1"
    # TVM imports torch where it is installed, and needs nothing of it here: hidden, it costs no time and memory.
    sys.modules["torch"] = None  # type: ignore[assignment]  # None makes an import raise ImportError
    import tvm  # noqa: F401

    del sys.modules["torch"]


def open_session(model: str, threads: int) -> Callable[[Sequence[Any]], Sequence[Any]]:
    import tvm

    # -1: any cores. Without this TVM takes half of what it sees.
    tvm.get_global_func("runtime.config_threadpool")(-1, threads)
    # What relax.VirtualMachine does; tvm.relax itself needs the compiler's library.
    machine: Any = tvm.runtime.load_module(model)["vm_load_executable"]()
    machine["vm_initialization"](_CPU, _DEVICE, _POOLED)
    function = machine["main"]

    def run(inputs: Sequence[Any]) -> Sequence[Any]:
        result = function(*(tvm.runtime.tensor(array) for array in inputs))
        outputs = [result] if hasattr(result, "numpy") else list(result)
        return [output.numpy() for output in outputs]

    return run
