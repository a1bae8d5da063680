"""A GPU that is simulated on the CPU: the real exported library and runtime, behind a driver that runs host code.

The CUDA source that TVM generated is compiled by the system's C++ compiler with ``simulator.h`` in place of the functions
that are one PTX instruction each; everything above them is the product's.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.driver.gpu import embed
from qcompiler.targets import cuda

FOLDER = Path(__file__).parent


@cache
def why_not() -> str | None:
    """Why no GPU can be simulated here; None where one can."""
    return (
        None
        if shutil.which("g++") and shutil.which("gcc")
        else "no gcc and g++ to compile the simulator with"
    )


@cache
def driver() -> Path:
    """A folder with the driver's and the runtime's libraries; it lives as long as the process."""
    folder = tempfile.TemporaryDirectory(prefix="qcompiler-simulator-")
    _folders.append(folder)
    path = Path(folder.name)
    common = ["gcc", "-shared", "-fPIC", "-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(
        [*common, "-Wl,-soname,libcuda.so.1", FOLDER / "driver.c", "-ldl", "-o", path / "libcuda.so.1"],
        check=True,
    )
    options = [f"-Wl,--version-script={FOLDER / 'runtime.map'}", "-Wl,-soname,libcudart.so.13"]
    inputs = [FOLDER / "runtime.c", path / "libcuda.so.1"]
    subprocess.run([*common, *options, *inputs, "-o", path / "libcudart.so.13"], check=True)
    return path


_folders: list[tempfile.TemporaryDirectory[str]] = []


def host_code(source: str, capability: int = 80) -> bytes:
    """Kernels compiled for the simulated GPU.

    Args:
        source: CUDA source that TVM generated.
        capability: of the GPU, as 75 or 80: it has the instructions of that one.
    """
    names = re.findall(r"__global__ void __launch_bounds__\(\d+\) (\w+)\([^)]*\) \{", source)
    launchers = "".join(
        f'extern "C" void launch_{name}(void** a, const unsigned* g, const unsigned* b) '
        f"{{ simulator::launch({name}, a, {{g[0], g[1], g[2]}}, {{b[0], b[1], b[2]}}); }}\n"
        for name in names
    )
    with tempfile.TemporaryDirectory() as folder:
        code, library = Path(folder) / "kernels.cc", Path(folder) / "kernels.so"
        code.write_text(
            '#include "simulator.h"\n' + cuda.device_source(instructions=False) + source + launchers
        )
        command = [
            "g++", "-std=c++20", "-O2", "-w", "-shared", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off",
            f"-D__CUDA_ARCH__={capability}0", f"-I{FOLDER}", f"-I{FOLDER / 'include'}", code, "-o", library,
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr[:4000]
        return library.read_bytes()


def export(executable: Any, library: Path, capability: int = 80) -> None:
    """Writes a library for the simulated GPU."""
    embed.export_library(executable, library, partial(host_code, capability=capability))


def environment(**settings: object) -> dict[str, str]:
    """Variables of a process that has the simulated GPU."""
    return {**os.environ, "LD_LIBRARY_PATH": str(driver()), **{k: str(v) for k, v in settings.items()}}


def run(
    library: Path, samples: Sequence[Sequence[np.ndarray]], *, simulated: bool = True
) -> list[list[np.ndarray]]:
    """The outputs, flattened, of a model's library for each of ``samples``, in a process of its own.

    With ``simulated`` False the library is for this machine's GPU, and runs on it.
    """
    work = [[np.ascontiguousarray(a) for a in arrays] for arrays in samples]
    outputs: list[list[np.ndarray]] = _worker("model", library, work, environment() if simulated else None)
    return outputs


def call(library: Path, names: Sequence[str], arguments: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What each of the kernels ``names`` writes to its last argument, in a process of its own."""
    outputs: list[np.ndarray] = _worker("kernels", library, (list(names), list(arguments)), environment())
    return outputs


def _worker(what: str, library: Path, work: Any, variables: dict[str, str] | None) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        data, results = Path(folder) / "work", Path(folder) / "results"
        data.write_bytes(pickle.dumps(work))
        command = [sys.executable, FOLDER / "worker.py", what, library, data, results]
        ended = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-4000:]
        return pickle.loads(results.read_bytes())
