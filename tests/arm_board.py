"""An ARM device behind an RPC tracker: an emulated server that needs TVM's runtime libraries alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import tvm_ffi.libinfo

from qcompiler.driver.cross import emulator
from qcompiler.driver.cross.libraries import foreign_library, runtime_libraries
from qcompiler.driver.machines import machine_of
from qcompiler.driver.zig import run_zig

SOURCE = Path(__file__).parent / "board" / "rpc_server.c"


def build(folder: Path) -> Path:
    """Compiles the server for ARM, with TVM's libraries beside it."""
    machine = machine_of("arm")
    rpc = foreign_library("lib/libtvm_runtime_extra.so", "apache-tvm", machine)
    libraries = [rpc, *runtime_libraries("arm").values()]
    for library in libraries:
        os.symlink(library, folder / library.name)
    program = folder / "rpc_server"
    arguments = [
        *("-target", machine.triple, "-std=c11", "-D_GNU_SOURCE", "-O1", "-Wall", "-Wextra", "-Werror"),
        *("-Wl,--no-as-needed", "-Wl,--allow-shlib-undefined"),
        *(f"-I{path}" for path in tvm_ffi.libinfo.include_paths()),
        *(str(path) for path in (SOURCE, *libraries)),
        *("-o", str(program)),
    ]
    run_zig("cc", arguments, f"compiling {SOURCE.name}")
    return program


@contextmanager
def started(program: Path, tracker_port: int, key: str, port: int, cpu: str) -> Iterator[subprocess.Popen[bytes]]:  # fmt: skip
    """The emulated server, known to the tracker by ``key``."""
    found = emulator.find("arm")
    command = [
        *(str(found.qemu), "-cpu", cpu, "-L", str(found.root), "-E", f"LD_LIBRARY_PATH={program.parent}"),
        *("-E", "TVM_NUM_THREADS=1", str(program), str(tracker_port), key, str(port), str(program.parent)),
    ]
    with (program.parent / "server.log").open("wb") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
