"""Loads TVM's runtime and a bundle's library through ``tvm_ffi``; imports neither ``tvm`` nor torch."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from qcompiler.errors import BundleError, GpuError
from qcompiler.runtime.manifest import (
    CONSTANTS_NAME,
    GPU_LIBRARY_NAMES,
    LIBRARY_NAME,
    RUNTIME_LIBRARY_NAME,
    Manifest,
)

ENTRY = "main"
"""Name of the model's function in the library."""

MOST_HASHERS = 4
"""Files that are hashed at once, at most. A bundle has no more than three or four large ones."""

_lock = threading.Lock()
_loaded_version: str | None = None


@functools.cache
def import_ffi() -> ModuleType:
    """The module ``tvm_ffi``, imported without torch unless torch is there already.

    ``tvm_ffi`` tries to import torch and goes on without it. Where torch is installed that would cost seconds
    and hundreds of megabytes, so it is hidden for the time of the import; tensors still pass, by DLPack.
    """
    with _lock:
        if "tvm_ffi" in sys.modules or "torch" in sys.modules:
            return importlib.import_module("tvm_ffi")
        sys.modules["torch"] = None  # type: ignore[assignment]  # None makes an import raise ImportError
        try:
            return importlib.import_module("tvm_ffi")
        finally:
            del sys.modules["torch"]


def global_function(name: str) -> Callable[..., Any]:
    """A function that TVM's runtime registers; the runtime must have been loaded."""
    function: Callable[..., Any] = import_ffi().get_global_func(name)
    return function


def load_library(bundle: Path, manifest: Manifest) -> Any:
    """Loads a verified bundle's library, and TVM's runtime unless this process has it already.

    Returns:
        The module whose ``vm_load_executable`` makes virtual machines.

    Raises:
        BundleError: this process has a ``tvm_ffi`` or a TVM runtime of another version than the bundle's.
    """
    ffi = import_ffi()
    if ffi.__version__ != manifest.versions.tvm_ffi:
        raise BundleError(
            f"bundle was made with apache-tvm-ffi {manifest.versions.tvm_ffi}; {ffi.__version__} is "
            f"installed; pip install apache-tvm-ffi=={manifest.versions.tvm_ffi}, or compile the model again"
        )
    _load_runtime(ffi, bundle, manifest)
    if manifest.architectures:
        _load_gpu_runtime(ffi, bundle, manifest)
    # The loader takes a path that it has seen for the library it loaded from there, even if the file is a new
    # one by now. Under a fresh name it looks at the file itself, so a bundle may be replaced and loaded
    # again.
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        alias = Path(folder) / LIBRARY_NAME
        os.symlink((bundle / LIBRARY_NAME).resolve(), alias)
        return ffi.load_module(str(alias), keep_module_alive=False)


def map_constants(bundle: Path, manifest: Manifest) -> list[npt.NDArray[Any]]:
    """The constants of a bundle, in memory that is mapped from its file: a page is read when it is first needed.

    Raises:
        BundleError: the file is smaller than the manifest says.
    """
    if not manifest.constants:
        return []
    # Copy-on-write: DLPack cannot tell the kernel of read-only memory, so NumPy refuses to pass it on.
    content = np.memmap(bundle / CONSTANTS_NAME, dtype=np.uint8, mode="c")
    end = max(spec.offset + spec.size for spec in manifest.constants)
    if end > content.size:
        raise BundleError(
            f"bundle {bundle}: {CONSTANTS_NAME} has {content.size} bytes, and the manifest says {end}; compile the "
            "model again"
        )
    return [
        content[spec.offset : spec.offset + spec.size].view(spec.dtype).reshape(spec.shape)
        for spec in manifest.constants
    ]


def new_machine(module: Any, devices: tuple[int, ...]) -> Any:
    """A virtual machine for the library ``module``; it runs one call at a time.

    Args:
        module: the library.
        devices: three numbers a device, the one that kernels run on first: DLPack's code of its kind, its number, and
            TVM's number of the allocator for it.
    """
    machine = module["vm_load_executable"]()
    machine["vm_initialization"](*devices)
    return machine


def _load_runtime(ffi: ModuleType, bundle: Path, manifest: Manifest) -> None:
    global _loaded_version
    with _lock:
        if _loaded_version is None:
            host = sys.modules.get("tvm")
            if ffi.get_global_func("runtime.config_threadpool", allow_missing=True) is None:
                # Global, because kernels find the runtime's functions by symbol.
                ctypes.CDLL(str(_runtime_path(bundle, manifest, RUNTIME_LIBRARY_NAME)), ctypes.RTLD_GLOBAL)
                _loaded_version = manifest.versions.tvm
            elif host is not None:
                _loaded_version = str(host.__version__)
            else:
                # Another user of tvm_ffi brought the runtime; the executable's own version check has to do.
                return
    if _loaded_version != manifest.versions.tvm:
        raise BundleError(
            f"bundle was made with apache-tvm {manifest.versions.tvm}, and this process runs "
            f"{_loaded_version}; load it in another process, or compile the model again"
        )


def _load_gpu_runtime(ffi: ModuleType, bundle: Path, manifest: Manifest) -> None:
    """TVM's runtime for GPUs, on top of its runtime for processors, unless this process has it already.

    Raises:
        GpuError: a library that it needs is missing.
    """
    with _lock:
        if ffi.get_global_func("device_api.cuda", allow_missing=True) is not None:
            return
        for name in GPU_LIBRARY_NAMES:
            try:
                ctypes.CDLL(str(_runtime_path(bundle, manifest, name)), ctypes.RTLD_GLOBAL)
            except OSError as error:
                raise GpuError(
                    f"TVM's runtime for GPUs cannot be loaded: {error}; the NVIDIA driver must be of version 580 or later"
                ) from error


def _runtime_path(bundle: Path, manifest: Manifest, name: str) -> Path:
    """A runtime library of the bundle, or the identical file of an installed TVM.

    A process that imports ``tvm`` later loads the installed file; were the bundle's copy loaded before, every
    function of the runtime would be registered twice, which ends the process.
    """
    own = bundle / name
    spec = importlib.util.find_spec("tvm")
    if spec is not None and spec.origin is not None:
        installed = Path(spec.origin).parent / name
        if installed.is_file() and sha256(installed) == manifest.files[name]:
            return installed
    return own


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    block = bytearray(1 << 17)  # stays in the cache between the kernel's copy and the hash
    view = memoryview(block)
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(view[:count])
    return digest.hexdigest()


def sha256_of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """:func:`sha256` of each file, several at once: hashing is most of the time of a load."""
    by_size = sorted(names, key=lambda name: (folder / name).stat().st_size, reverse=True)
    with ThreadPoolExecutor(min(MOST_HASHERS, len(os.sched_getaffinity(0)))) as pool:
        return dict(zip(by_size, pool.map(lambda name: sha256(folder / name), by_size), strict=True))
