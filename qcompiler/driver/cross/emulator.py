"""Runs a library of another architecture on this machine, under QEMU's user-mode emulation."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi.libinfo
from numpy.typing import NDArray

from qcompiler.driver.cross.libraries import cache_folder, runtime_libraries
from qcompiler.driver.machines import machine_of
from qcompiler.driver.zig import run_zig
from qcompiler.errors import BuildError

Array = NDArray[Any]

CROSS_PACKAGES = ("libc6-arm64-cross", "libstdc++6-arm64-cross")
"""Debian packages with the C and C++ libraries that TVM's runtime needs."""

_ROOTS = (Path("/usr/aarch64-linux-gnu"),)
"""Where distributions put them."""

_RUNNER = Path(__file__).with_name("runner.c")
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_KINDS = {0: "i", 1: "u", 2: "f", 6: "u"}
"""NumPy's kinds by DLPack's codes; a boolean is a byte."""


@dataclass(frozen=True)
class Emulator:
    """What runs libraries of one machine here.

    Attributes:
        qemu: the emulator.
        root: folder whose ``lib`` has the machine's C and C++ libraries.
        family: family of the targets.
    """

    qemu: Path
    root: Path
    family: str


def find(family: str) -> Emulator:
    """The emulator for targets of ``family``.

    Raises:
        BuildError: it, or a library that it needs, is not installed.
    """
    machine = machine_of(family).name
    names = (f"qemu-{machine}-static", f"qemu-{machine}")
    qemu = next((path for path in map(shutil.which, names) if path), None)
    if qemu is None:
        raise BuildError(
            f"no emulator for {machine}: neither {names[0]} nor {names[1]} is on the PATH; on Debian: "
            "apt-get install qemu-user-static"
        )
    root = next((r for r in _ROOTS if (r / "lib" / "libstdc++.so.6").exists()), None)
    if root is None:
        raise BuildError(
            f"no C++ library for {machine} in {' or '.join(str(r) for r in _ROOTS)}; on Debian: "
            f"apt-get install {' '.join(CROSS_PACKAGES)}"
        )
    return Emulator(Path(qemu), root, family)


def run(
    library: Path,
    samples: Sequence[Sequence[Array]],
    constants: Sequence[Array] = (),
    *,
    family: str,
    cpu: str = "max",
    threads: int = 1,
    timeout: float = 3600.0,
    options: Sequence[str] = (),
    maps: Path | None = None,
) -> list[list[Array]]:
    """Runs the model in ``library`` on every one of ``samples`` in one emulated process.

    Args:
        library: the model's shared library.
        samples: for every run, the arrays of the inputs.
        constants: the arguments that follow the inputs, the same for every run.
        family: family of the target that it was compiled for.
        cpu: QEMU's name of the processor; it traps on instructions that the processor lacks.
        threads: threads of a run.
        timeout: seconds.
        options: further options of the emulator.
        maps: a file to write, with the process's memory map.

    Returns:
        For every run, the arrays of the outputs.

    Raises:
        BuildError: there is no emulator, or the run ended with an error; its words are in the message.
    """
    emulator = find(family)
    libraries = runtime_libraries(family)
    runner = _runner(family)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        for name, path in libraries.items():
            os.symlink(path, Path(folder) / Path(name).name)
        request, response = Path(folder) / "request", Path(folder) / "response"
        with request.open("wb") as file:
            file.write(struct.pack("<III", len(samples), len(samples[0]) if samples else 0, len(constants)))
            for arrays in (constants, *samples):
                for array in arrays:
                    file.write(_head(array))
                    file.write(np.ascontiguousarray(array).tobytes())
        command = [
            str(emulator.qemu), "-cpu", cpu, "-L", str(emulator.root), "-E", f"LD_LIBRARY_PATH={folder}",
            "-E", f"TVM_NUM_THREADS={threads}", *options, str(runner), str(library), str(request), str(response),
            *([] if maps is None else [str(maps)]),
        ]  # fmt: skip
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=False, timeout=timeout
            )
        except subprocess.TimeoutExpired as error:
            raise BuildError(
                f"{library} ran longer than {timeout:.0f} s under {emulator.qemu.name}"
            ) from error
        if result.returncode != 0:
            said = " | ".join(result.stderr.strip().splitlines()[-3:])
            raise BuildError(
                f"{library} ended with exit status {result.returncode} under {emulator.qemu.name} -cpu {cpu}: {said}"
            )
        return _parse(response.read_bytes())


def _head(array: Array) -> bytes:
    code, bits = _CODES[array.dtype.kind], array.dtype.itemsize * 8
    return struct.pack(f"<III{array.ndim}q", code, bits, array.ndim, *array.shape)


def _parse(data: bytes) -> list[list[Array]]:
    runs, count = struct.unpack_from("<II", data)
    place = 8
    results = []
    for _ in range(runs):
        arrays = []
        for _ in range(count):
            code, bits, rank = struct.unpack_from("<III", data, place)
            shape = struct.unpack_from(f"<{rank}q", data, place + 12)
            place += 12 + 8 * rank
            dtype = np.dtype(f"{_KINDS[code]}{max(bits, 8) // 8}")
            size = int(np.prod(shape, dtype=np.int64))
            arrays.append(np.frombuffer(data, dtype, size, place).reshape(shape).copy())
            place += size * dtype.itemsize
        results.append(arrays)
    return results


@functools.cache
def _runner(family: str) -> Path:
    """The program that loads a library under emulation, compiled once and kept in the cache folder."""
    machine = machine_of(family)
    libraries = runtime_libraries(family)
    options = [
        "-target",
        machine.triple,
        "-O1",
        "-s",
        "-Wl,--no-as-needed",
        "-Wl,--allow-shlib-undefined",
    ]
    made_of = [_RUNNER.read_text(encoding="utf-8"), *options, *(str(p) for p in libraries.values())]
    digest = hashlib.sha256("\0".join(made_of).encode()).hexdigest()[:16]
    path = cache_folder() / f"runner-{machine.name}-{digest}"
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    include = [f"-I{folder}" for folder in tvm_ffi.libinfo.include_paths()]
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    sources = [str(_RUNNER), *(str(p) for p in libraries.values())]
    arguments = [*options, *include, *sources, "-o", str(partial)]
    run_zig("cc", arguments, f"compiling {_RUNNER.name} for {machine.name}")
    partial.replace(path)
    return path
