"""The GPU of this machine, as its driver tells, and where a model's tensors lie."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

from qcompiler.errors import GpuError
from qcompiler.runtime.library import global_function, import_ffi
from qcompiler.runtime.manifest import Manifest

DRIVER = "libcuda.so.1"
_CLOCK, _MULTIPROCESSORS, _MAJOR, _MINOR = 13, 16, 75, 76
"""The driver's numbers of the highest clock in kHz, the multiprocessors, and the parts of a compute capability."""

CPU, GPU = 1, 2
"""DLPack's codes of devices."""

POOLED = 2
"""TVM's pooling allocator."""


@dataclass(frozen=True)
class Gpu:
    """A GPU as its driver describes it.

    Attributes:
        capability: compute capability, as 80 for 8.0.
        multiprocessors: of the chip.
        hertz: highest clock of the multiprocessors.
    """

    capability: int
    multiprocessors: int
    hertz: float


def first_gpu() -> Gpu:
    """The first GPU of this machine.

    Raises:
        GpuError: there is no driver, or it finds no GPU.
    """
    major, minor, multiprocessors, kilohertz = _attributes(_MAJOR, _MINOR, _MULTIPROCESSORS, _CLOCK)
    return Gpu(10 * major + minor, multiprocessors, 1e3 * kilohertz)


def compute_capability() -> int:
    """Compute capability of the first GPU, as 80 for 8.0.

    Raises:
        GpuError: there is no driver, or it finds no GPU.
    """
    major, minor = _attributes(_MAJOR, _MINOR)
    return 10 * major + minor


def _attributes(*numbers: int) -> list[int]:
    """What the driver says of the first GPU, by its numbers of attributes."""
    try:
        driver = ctypes.CDLL(DRIVER)
    except OSError as error:
        raise GpuError(f"no NVIDIA driver: {error}; install one of version 580 or later") from error
    count, device, value = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    status = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if status != 0 or count.value == 0:
        raise GpuError(
            f"the NVIDIA driver finds no GPU (its status is {status}); look at what nvidia-smi says"
        )
    values = []
    for number in numbers:
        status = driver.cuDeviceGet(ctypes.byref(device), 0) or driver.cuDeviceGetAttribute(
            ctypes.byref(value), number, device
        )
        if status != 0:
            raise GpuError(f"the NVIDIA driver does not tell what its GPU can do (its status is {status})")
        values.append(value.value)
    return values


def check_gpu(manifest: Manifest) -> None:
    """Refuses a bundle whose GPU code this machine cannot run; one without GPU code passes.

    Raises:
        GpuError: there is no GPU, or it is older than every architecture of the bundle.
    """
    if manifest.least_capability is None:
        return
    capability = compute_capability()
    if capability < manifest.least_capability:
        raise GpuError(
            f"bundle for target {manifest.target_name} needs a GPU of compute capability "
            f"{manifest.least_capability / 10} or later, and this one has {capability / 10}; compile the model for "
            "it: qcompile targets"
        )


class Placement:
    """Where a model's tensors lie: in the memory of the CPU, or of a GPU that they are copied to and from."""

    def __init__(self, gpu: bool) -> None:
        self.gpu = gpu
        self.devices = (GPU, 0, POOLED, CPU, 0, POOLED) if gpu else (CPU, 0, POOLED)
        """Arguments of the virtual machine's start."""

    def to_model(self, tensor: Any) -> Any:
        """A tensor of the CPU where the model reads it."""
        return global_function("vm.builtin.to_device")(tensor, GPU, 0) if self.gpu else tensor

    def to_caller(self, tensor: Any) -> Any:
        """A tensor of the model where NumPy reads it; what computes it has ended."""
        return global_function("vm.builtin.to_device")(tensor, CPU, 0) if self.gpu else tensor

    def wait(self) -> None:
        """Returns when all kernels that were started have ended."""
        if self.gpu:
            global_function("runtime.Device_StreamSync")(import_ffi().device("cuda", 0), 0)
