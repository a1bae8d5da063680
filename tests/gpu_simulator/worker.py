"""Runs a library on the GPU of this process: worker.py LIBRARY SAMPLES RESULTS."""

from __future__ import annotations

import ctypes
import importlib.util
import pickle
import sys
from pathlib import Path

import numpy as np

from qcompiler.runtime.library import global_function, import_ffi

CPU, GPU, POOLED = 1, 2, 2


def main(library: str, samples: str, results: str) -> None:
    ffi = import_ffi()
    spec = importlib.util.find_spec("tvm")
    assert spec is not None and spec.origin is not None
    for name in ("libtvm_runtime.so", "libtvm_runtime_cuda.so"):
        ctypes.CDLL(str(Path(spec.origin).parent / "lib" / name), ctypes.RTLD_GLOBAL)
    to_device = global_function("vm.builtin.to_device")
    machine = ffi.load_module(library)["vm_load_executable"]()
    machine["vm_initialization"](GPU, 0, POOLED, CPU, 0, POOLED)

    def arrays_of(result: object) -> list[np.ndarray]:
        if hasattr(result, "__dlpack__"):
            return [np.from_dlpack(to_device(result, CPU, 0)).copy()]
        return [array for part in result for array in arrays_of(part)]  # type: ignore[attr-defined]

    outputs = []
    for arrays in pickle.loads(Path(samples).read_bytes()):
        tensors = [to_device(ffi.from_dlpack(array), GPU, 0) for array in arrays]
        outputs.append(arrays_of(machine["main"](*tensors)))
    Path(results).write_bytes(pickle.dumps(outputs))


if __name__ == "__main__":
    main(*sys.argv[1:])
