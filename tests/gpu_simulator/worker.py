"""Runs a library on the GPU of this process: worker.py model|kernels LIBRARY WORK RESULTS."""

from __future__ import annotations

import ctypes
import importlib.util
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.runtime.gpu import CPU, GPU, Placement
from qcompiler.runtime.library import global_function, import_ffi, new_machine


def load(library: str) -> Any:
    """A library, after TVM's runtime for processors and for GPUs."""
    ffi = import_ffi()
    spec = importlib.util.find_spec("tvm")
    assert spec is not None
    assert spec.origin is not None
    for name in ("libtvm_runtime.so", "libtvm_runtime_cuda.so"):
        ctypes.CDLL(str(Path(spec.origin).parent / "lib" / name), ctypes.RTLD_GLOBAL)
    return ffi.load_module(library)


def on_gpu(array: np.ndarray) -> Any:
    return global_function("vm.builtin.to_device")(import_ffi().from_dlpack(array), GPU, 0)


def on_cpu(tensor: Any) -> np.ndarray:
    return np.from_dlpack(global_function("vm.builtin.to_device")(tensor, CPU, 0)).copy()


def arrays_of(result: Any) -> list[np.ndarray]:
    if hasattr(result, "__dlpack__"):
        return [on_cpu(result)]
    return [array for part in result for array in arrays_of(part)]


def run_model(module: Any, samples: Sequence[Sequence[np.ndarray]]) -> list[list[np.ndarray]]:
    main = new_machine(module, Placement(gpu=True).devices)["main"]
    return [arrays_of(main(*map(on_gpu, arrays))) for arrays in samples]


def call_kernels(module: Any, work: tuple[list[str], list[np.ndarray]]) -> list[np.ndarray]:
    outputs = []
    for name in work[0]:
        tensors = [on_gpu(array) for array in work[1]]
        module[name](*tensors)
        outputs.append(on_cpu(tensors[-1]))
    return outputs


if __name__ == "__main__":
    what, library, data, results = sys.argv[1:]
    run = {"model": run_model, "kernels": call_kernels}[what]
    Path(results).write_bytes(pickle.dumps(run(load(library), pickle.loads(Path(data).read_bytes()))))
