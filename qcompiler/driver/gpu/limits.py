"""Checks that every kernel keeps to the limits of its GPU: what TVM lowered it to, and what the machine code takes.

TVM's verifier (``VerifyGPUCode``) looks at each function of the device after its last pass: threads and shared memory of
a block, widths of vectors. What it cannot see are registers; the assembler tells them, architecture by architecture.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from typing import Any

import tvm
import tvm_ffi
from tvm import tirx
from tvm.ir.transform import PassContext

from qcompiler.errors import BuildError
from qcompiler.targets.base import GpuTarget

log = logging.getLogger(__name__)

_LAST_PASS = "tirx.LowerIntrin"
"""The last of TVM's passes over functions of the device; it is applied to those of the host, too."""

_LAUNCH = "tirx.kernel_launch_params"
"""The attribute that functions of the device have."""

WARP = 32

REGISTER_UNIT = 256
"""Registers that a warp is given at once: its share is a multiple of it."""

MOST_REGISTERS = 255
"""Registers of a thread that an instruction can name."""


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of a multiprocessor, as the assembler reports it.

    Attributes:
        registers: of a thread, 32 bits each.
        shared_bytes: shared memory of a block.
        spilled_bytes: of a thread, written to memory for want of registers.
    """

    registers: int
    shared_bytes: int
    spilled_bytes: int


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLED = re.compile(r"(\d+) bytes spill stores")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


def read_resources(report: str) -> dict[str, Resources]:
    """What the assembler's report (``ptxas -v``) says of each kernel, by the kernel's name.

    Raises:
        BuildError: the report has another form.
    """
    found: dict[str, Resources] = {}
    name, spilled = "", 0
    for line in report.splitlines():
        if entry := _ENTRY.search(line):
            name = entry[1]
        if spills := _SPILLED.search(line):
            spilled = int(spills[1])
        if (used := _USED.search(line)) and name:
            shared = _SHARED.search(line)
            found[name] = Resources(int(used[1]), int(shared[1]) if shared else 0, spilled)
    if len(found) != len(_ENTRY.findall(report)):
        raise BuildError(
            "NVRTC reports the resources of kernels in a form that is not known; install a version that the extra "
            "'cuda' allows"
        )
    return found


def constraints(target: GpuTarget) -> dict[str, int]:
    """The limits that TVM's verifier is given."""
    return {
        "max_threads_per_block": target.block_threads,
        "max_thread_x": target.block_threads,
        "max_thread_y": target.block_threads,
        "max_thread_z": 64,
        "max_shared_memory_per_block": target.shared_bytes,
        "max_vector_bytes": target.vector_bits // 8,
    }


@dataclass
class Kernels:
    """The functions of the device that were verified.

    Attributes:
        target: the GPU.
        layers: of a kernel of TVM, the layers that run it, for messages.
        threads: of a block, by the name of the function of the device.
    """

    target: GpuTarget
    layers: Mapping[str, Sequence[str]] = field(default_factory=dict)
    threads: dict[str, int] = field(default_factory=dict)

    def verify(self, module: tvm.IRModule) -> list[str]:
        """Looks at the functions of the device in a module; what is wrong with them."""
        check = tvm.get_global_func("s_tir.transform.VerifyGPUCode")(constraints(self.target))
        faults = []
        for var, function in module.functions_items():
            if not (isinstance(function, tirx.PrimFunc) and function.attrs and _LAUNCH in function.attrs):
                continue
            name = str(function.attrs.get("global_symbol", var.name_hint))
            self.threads[name] = _threads(function)
            try:
                check(tvm.IRModule({var: function}))
            except RuntimeError as error:
                # "GPU constraint(s) violated:", a line a fault, and the function
                lines = str(error).split("violated:")[-1].split("In function")[0].strip().splitlines()
                faults.append(self._fault(name, "; ".join(line.strip(" ;") for line in lines)))
        return faults

    def check(self, resources: Mapping[str, Mapping[str, Resources]]) -> None:
        """Looks at what the machine code takes.

        Args:
            resources: by architecture, as ``sm_80``, and by the name of the function of the device.

        Raises:
            BuildError: a kernel takes more than there is, or was never verified.
        """
        faults = []
        for architecture, kernels in resources.items():
            for name, taken in kernels.items():
                if name not in self.threads:
                    raise BuildError(
                        f"kernel {name} was not seen by TVM's verifier of GPU code; report this as a bug"
                    )
                faults += [
                    self._fault(name, f"{excess} on {architecture}") for excess in self._excesses(name, taken)
                ]
                if taken.spilled_bytes:
                    log.warning(
                        "%s writes %d bytes a thread to memory on %s, for want of registers; it is correct, and slower",
                        self._called(name), taken.spilled_bytes, architecture,
                    )  # fmt: skip
        _raise(faults, self.target)

    def _excesses(self, name: str, taken: Resources) -> Iterator[str]:
        warps = -(-self.threads[name] // WARP)
        of_warp = -(-taken.registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
        limits = (
            ("registers of a thread", taken.registers, MOST_REGISTERS),
            ("registers of a block", warps * of_warp, self.target.block_registers),
            ("bytes of shared memory of a block", taken.shared_bytes, self.target.shared_bytes),
        )
        return (f"{what} are {count}; allowed: {most}" for what, count, most in limits if count > most)

    def _called(self, name: str) -> str:
        layers = self.layers.get(kernel_of(name), ())
        return f"kernel {name}" + (f" of layer {', '.join(layers)}" if layers else "")

    def _fault(self, name: str, what: str) -> str:
        return f"{self._called(name)}: {what}"


def kernel_of(function: str) -> str:
    """The kernel of TVM that a function of the device is of; one kernel may become several, which are numbered."""
    return re.sub(r"_kernel(_\d+)?$", "", function)


@contextmanager
def verified(target: GpuTarget, layers: Mapping[str, Sequence[str]] | None = None) -> Iterator[Kernels]:
    """Within, every kernel that TVM compiles for a GPU is verified, when the last of its passes is done.

    Args:
        target: the GPU.
        layers: of a kernel, the layers that run it, for messages.

    Raises:
        BuildError: at the end, if a kernel does not keep to the limits.
    """
    kernels = Kernels(target, layers or {})
    faults: list[str] = []
    outer = PassContext.current()
    context = PassContext(
        outer.opt_level, list(outer.required_pass), list(outer.disabled_pass),
        [*(outer.instruments or ()), _Watch(kernels, faults)], dict(outer.config),
    )  # fmt: skip
    with context:
        yield kernels
    _raise(faults, target)


@tvm.instrument.pass_instrument
class _Watch:
    """Sees each module after the last pass over functions of the device, and gathers what is wrong with them."""

    def __init__(self, kernels: Kernels, faults: list[str]) -> None:
        self.kernels, self.faults = kernels, faults

    def run_after_pass(self, module: tvm.IRModule, info: Any) -> None:
        if str(info.name) == _LAST_PASS:
            self.faults += self.kernels.verify(module)


def _threads(function: tirx.PrimFunc) -> int:
    """Threads of a block, from the launch of a function of the device."""
    extents: dict[str, int] = {}

    def visit(node: tirx.AttrStmt) -> None:
        if str(node.attr_key) == "thread_extent" and str(node.node.thread_tag).startswith("threadIdx"):
            extents[str(node.node.thread_tag)] = int(node.value)

    tvm_ffi.structural_walk(function.body, (tirx.AttrStmt, visit))
    return prod(extents.values())


def _raise(faults: Sequence[str], target: GpuTarget) -> None:
    if faults:
        raise BuildError(
            f"{len(faults)} kernels do not keep to the limits of {target.name}; the first: {faults[0]}; compile without "
            "tuning logs (--no-log), and report this as a bug if that fails too"
        )
