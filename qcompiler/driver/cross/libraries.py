"""TVM's runtime libraries for a machine: this installation's, or those of the same version's wheels for it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import tvm_ffi.libinfo
from tvm import libinfo

from qcompiler.driver.gpu.nvrtc import INSTALL, toolkit
from qcompiler.driver.machines import Machine, machine_of
from qcompiler.errors import BuildError
from qcompiler.runtime.manifest import FFI_LIBRARY_NAME, GPU_LIBRARY_NAMES, RUNTIME_LIBRARY_NAME

_PACKAGES = {RUNTIME_LIBRARY_NAME: "apache-tvm", FFI_LIBRARY_NAME: "apache-tvm-ffi"}


def cache_folder() -> Path:
    """Where downloads and built tools are kept: ``$XDG_CACHE_HOME/qcompiler``, or ``~/.cache/qcompiler``."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "qcompiler"


def runtime_libraries(family: str) -> dict[str, Path]:
    """TVM's runtime libraries for targets of ``family``, by their paths in a bundle.

    For this machine's own architecture they are the installed ones. For another one they are taken out of the
    same versions' wheels for it, which pip downloads once; they are kept in the cache folder.

    Raises:
        BuildError: they are not in the cache and cannot be downloaded.
    """
    machine = machine_of(family)
    if machine.name == platform.machine():
        found = {
            RUNTIME_LIBRARY_NAME: Path(libinfo.find_libtvm_runtime()),
            FFI_LIBRARY_NAME: Path(tvm_ffi.libinfo.find_libtvm_ffi()),
        }
    else:
        found = {name: foreign_library(name, package, machine) for name, package in _PACKAGES.items()}
    return {**found, **gpu_libraries(found[RUNTIME_LIBRARY_NAME])} if family == "cuda" else found


def gpu_libraries(runtime: Path) -> dict[str, Path]:
    """TVM's runtime for GPUs, which lies beside its ``runtime``, and NVIDIA's that it is linked with.

    Raises:
        BuildError: one of them is missing.
    """
    nvidia, own = GPU_LIBRARY_NAMES
    found = {nvidia: toolkit() / "lib" / Path(nvidia).name, own: runtime.with_name(Path(own).name)}
    missing = [path for path in found.values() if not path.is_file()]
    if missing:
        raise BuildError(
            f"a bundle for GPUs holds {missing[0].name}, which is not at {missing[0]}; run {INSTALL}"
        )
    return found


def foreign_library(name: str, package: str, machine: Machine) -> Path:
    """Library ``name`` of the wheel of ``package`` for ``machine``, in the installed version."""
    version = importlib.metadata.version(package)
    path = cache_folder() / f"{package}-{version}-{machine.name}" / Path(name).name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--only-binary=:all:", f"--platform={machine.wheel_tag}", f"--dest={folder}", f"{package}=={version}",
        ]  # fmt: skip
        result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if result.returncode != 0 or not wheels:
            said = (result.stderr or result.stdout).strip().splitlines()
            raise BuildError(
                f"a bundle for {machine.name} holds {path.name} of {package} {version}, which is not in {path.parent} "
                f"and could not be downloaded: {said[-1] if said else 'pip gave no wheel'}; connect to a package "
                f"index and compile again, or put the library of that wheel into {path.parent}"
            )
        _extract(wheels[0], path)
    return path


def _extract(wheel: Path, path: Path) -> None:
    """Writes the file of ``wheel`` that is named like ``path`` to ``path``, in one step."""
    with zipfile.ZipFile(wheel) as archive:
        members = [member for member in archive.namelist() if Path(member).name == path.name]
        if len(members) != 1:
            raise BuildError(f"{wheel.name} has {len(members)} files named {path.name}; 1 is expected")
        partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
        with archive.open(members[0]) as source, partial.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    partial.chmod(0o755)
    partial.replace(path)
