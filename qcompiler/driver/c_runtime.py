"""Compiles the C runtime for a bundle's machine, with the compiler of the ``ziglang`` wheel.

That compiler knows every machine and the C library of each, so a bundle for another machine is made like one for this,
and the same source gives the same bytes wherever it is compiled.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import tvm_ffi.libinfo

import qcompiler.runtime
from qcompiler._version import __version__
from qcompiler.driver.machines import machine_of
from qcompiler.driver.zig import run_zig
from qcompiler.runtime.manifest import Manifest, TensorSpec

SOURCE = Path(qcompiler.runtime.__file__).parent / "c"

_OPTIONS = (
    "-shared", "-s", "-std=c11", "-O2", "-fPIC", "-fvisibility=hidden", "-D_GNU_SOURCE", "-Wl,-soname,libqc_runtime.so",
    "-Wl,--build-id=none", "-Wall", "-Wextra", "-Werror", "-fno-sanitize=undefined",
)  # fmt: skip
_LIBRARIES = ("-lpthread", "-ldl")

LIBRARY_NAME = "lib/libqc_runtime.so"
_COPIED = ("include/qc_runtime.h", "examples/run.c", "examples/run.cc")
_FILLED_IN = {"README.md": "README.md", "lib/pkgconfig/qc_runtime.pc": "qc_runtime.pc"}


def c_runtime_files(manifest: Manifest) -> dict[str, bytes]:
    """The C runtime, its header, examples, pkg-config file and a page on how to use them, by path in a bundle.

    Raises:
        BuildError: the compiler is missing or failed.
    """
    values = {
        "@VERSION@": __version__,
        "@TARGET@": manifest.target_name,
        "@TENSORS@": "\n".join(
            [
                *(_describe("input", spec) for spec in manifest.inputs),
                *(_describe("output", spec) for spec in manifest.outputs),
            ]
        ),
    }
    files = {LIBRARY_NAME: library(str(manifest.target["family"]))}
    files |= {name: (SOURCE / name).read_bytes() for name in _COPIED}
    for name, template in _FILLED_IN.items():
        text = (SOURCE / template).read_text(encoding="utf-8")
        for key, value in values.items():
            text = text.replace(key, value)
        files[name] = text.encode()
    return files


@functools.cache
def library(family: str) -> bytes:
    """The content of ``libqc_runtime.so`` for the machines of a target family.

    Raises:
        BuildError: no machine is known for the family, or the compiler is missing or failed.
    """
    machine = machine_of(family)
    sources = sorted(path.name for path in (SOURCE / "src").glob("*.c"))
    includes = [str(SOURCE / "include"), *tvm_ffi.libinfo.include_paths()]
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        output = Path(folder) / "libqc_runtime.so"
        arguments = [
            *("-target", machine.triple),
            *_OPTIONS,
            f'-DQC_VERSION="{__version__}"',
            *(f"-I{path}" for path in includes),
            *sources,
            *_LIBRARIES,
            *("-o", str(output)),
        ]
        # Named from their own folder, so that no path of this machine gets into the library.
        run_zig("cc", arguments, "compiling the C runtime", SOURCE / "src")
        return output.read_bytes()


def _describe(kind: str, spec: TensorSpec) -> str:
    text = f"- {kind} `{spec.name}`: {spec.dtype} [{', '.join(map(str, spec.shape))}]"
    if spec.scale is not None:
        text += f", quantized with scale {spec.scale:.6g} and zero point {spec.zero_point}"
    return text
