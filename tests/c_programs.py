"""The C example of a bundle, built by the system's compiler and run in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import small_bundle


@dataclass(frozen=True)
class Ended:
    """How a program ended: its status, negative for a signal, what it printed, and libraries that it loaded."""

    status: int
    out: str
    err: str
    loaded: frozenset[str]


@dataclass(frozen=True)
class CProgram:
    """A program that takes a bundle."""

    path: Path

    def run(self, bundle: Path, *arguments: object) -> Ended:
        environment = {**os.environ, "LD_DEBUG": "files", "LD_DEBUG_OUTPUT": str(self.path) + ".loader"}
        process = subprocess.Popen(
            [self.path, bundle, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            preexec_fn=on_one_cpu,
        )
        out, err = process.communicate(timeout=60)
        log = Path(f"{self.path}.loader.{process.pid}")
        starts = [line.split()[-1] for line in log.read_text().splitlines() if "calling init" in line]
        log.unlink()
        return Ended(process.returncode, out, err, frozenset(Path(path).name for path in starts))

    def outputs(self, bundle: Path, folder: Path) -> bytes:
        """What the program writes for the inputs of ``small_bundle``."""
        files = []
        for name, array in zip("xb", small_bundle.inputs(), strict=True):
            files.append(folder / f"{name}.bin")
            np.ascontiguousarray(array).tofile(files[-1])
        ended = self.run(bundle, "-o", folder / "out.bin", *files)
        assert ended.status == 0, ended.err
        return (folder / "out.bin").read_bytes()


def on_one_cpu() -> None:
    """Workers of TVM wait by spinning, which takes long where other programs want the CPUs."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def compiler(name: str) -> str:
    """The path of a system compiler; the test is skipped where there is none."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs a system compiler: {name} is not installed")
    return found


def compile_example(bundle: Path, folder: Path) -> CProgram:
    """Builds ``examples/run.c``; warnings are errors."""
    program = folder / "run-model"
    command = [
        *(
            compiler("cc"),
            "-Wall",
            "-Wextra",
            "-Werror",
            "examples/run.c",
            "-Iinclude",
            "-Llib",
            "-lqc_runtime",
        ),
        *(f"-Wl,-rpath,{bundle / 'lib'}", "-o", str(program)),
    ]
    subprocess.run(command, cwd=bundle, check=True)
    return CProgram(program)
