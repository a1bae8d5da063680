"""Compiles CUDA source with NVIDIA's libraries from pip: cubins and PTX (NVRTC), in one fatbin (nvFatbin).

The package ``qcompiler[cuda]`` brings them; neither a CUDA toolkit nor a GPU is needed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qcompiler.driver.gpu.limits import Resources, read_resources
from qcompiler.errors import BuildError
from qcompiler.targets import cuda

_OPTIONS = ("--std=c++17", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "--ftz=false")
"""No multiply-add is contracted and no denormal is flushed: the arithmetic is IEEE's, as on every target."""

_REPORT = "--ptxas-options=-v"
"""The assembler reports what each kernel takes."""

_HEADERS = {
    "cuda/std/cstdint": """
namespace cuda::std {
typedef signed char int8_t; typedef short int16_t; typedef int int32_t; typedef long long int64_t;
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned uint32_t;
typedef unsigned long long uint64_t;
}
""",
    "cuda/std/type_traits": """
namespace cuda::std {
template <class A, class B> inline constexpr bool is_same_v = false;
template <class A> inline constexpr bool is_same_v<A, A> = true;
template <class, class> struct is_same; template <class> struct is_integral; template <class> struct is_signed;
template <class> struct is_unsigned; template <class> struct is_floating_point;
template <bool, class> struct enable_if; template <bool, class, class> struct conditional;
}
""",
}
"""What TVM's preamble includes of the C++ library. Its kernels use the integers alone; the rest is declared to be named."""

INSTALL = "pip install 'qcompiler[cuda]'"


@dataclass(frozen=True)
class GpuCode:
    """One source, compiled.

    Attributes:
        cubins: machine code by architecture, as ``sm_80``.
        ptx: for architectures from ``ptx_architecture`` on, compiled by the driver when it is loaded.
        ptx_architecture: as ``compute_80``.
        fatbin: all of it in one file, of which the driver takes what fits the chip.
        resources: what each kernel takes, by architecture and name.
    """

    cubins: dict[str, bytes]
    ptx: bytes
    ptx_architecture: str
    fatbin: bytes
    resources: dict[str, dict[str, Resources]]


def compile_source(source: str, architectures: Sequence[str]) -> GpuCode:
    """Compiles the source that TVM generated, with the device functions of ``targets/cuda`` before it.

    Args:
        source: CUDA C++.
        architectures: such as ``sm_80``, at least one, ascending; PTX is made for the last one.

    Raises:
        BuildError: NVIDIA's libraries are not installed, or the source does not compile.
    """
    text = cuda.device_source() + source
    compiled = {architecture: _compile(text, architecture) for architecture in architectures}
    cubins = {architecture: code for architecture, (code, _) in compiled.items()}
    resources = {architecture: read_resources(report) for architecture, (_, report) in compiled.items()}
    virtual = architectures[-1].replace("sm_", "compute_")
    ptx, _ = _compile(text, virtual)
    return GpuCode(cubins, ptx, virtual, _fatbin(cubins, ptx, architectures[-1]), resources)


def toolkit() -> Path:
    """The folder in which NVIDIA's wheels put ``lib``, ``include`` and ``bin``.

    Raises:
        BuildError: they are not installed.
    """
    found = importlib.util.find_spec("nvidia")
    for folder in found.submodule_search_locations or () if found is not None else ():
        root = Path(folder) / "cu13"
        if (root / "include").is_dir():
            return root
    raise BuildError(f"compiling for CUDA needs NVIDIA's libraries; run {INSTALL}")


def _compile(source: str, architecture: str) -> tuple[bytes, str]:
    """``source`` as a cubin (``sm_80``) or as PTX (``compute_80``), and what the compiler says of it."""
    nvrtc = _bindings("nvrtc")
    _, program = _checked(
        nvrtc,
        nvrtc.nvrtcCreateProgram(
            source.encode(),
            b"kernels.cu",
            len(_HEADERS),
            [h.encode() for h in _HEADERS.values()],
            [h.encode() for h in _HEADERS],
        ),
    )
    include = toolkit() / "include"
    options = [f"--gpu-architecture={architecture}", f"--include-path={include}", *_OPTIONS]
    machine = architecture.startswith("sm_")
    if machine:
        options.append(_REPORT)
    try:
        (status,) = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
        if status != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise BuildError(
                f"compiling kernels for {architecture} failed: {_errors(_log(nvrtc, program))}; report this as a bug"
            )
        kind = "CUBIN" if machine else "PTX"
        _, size = _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{kind}Size")(program))
        content = bytes(size)
        _checked(nvrtc, getattr(nvrtc, f"nvrtcGet{kind}")(program, content))
        return content, _log(nvrtc, program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)


def _fatbin(cubins: dict[str, bytes], ptx: bytes, ptx_architecture: str) -> bytes:
    nvfatbin = _bindings("nvfatbin")
    handle = nvfatbin.create(["-64", "-compress=false"], 2)
    try:
        for architecture, cubin in cubins.items():
            name = architecture.removeprefix("sm_")
            nvfatbin.add_cubin(handle, cubin, len(cubin), name, f"kernels.{architecture}.cubin")
        name = ptx_architecture.removeprefix("sm_")
        nvfatbin.add_ptx(handle, ptx, len(ptx), name, "kernels.ptx", "")
        content = bytearray(nvfatbin.size(handle))
        nvfatbin.get(handle, content)
        return bytes(content)
    finally:
        nvfatbin.destroy(handle)


def _bindings(name: str) -> Any:
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ImportError as error:
        raise BuildError(f"compiling for CUDA needs NVIDIA's libraries: {error}; run {INSTALL}") from error


def _checked(nvrtc: Any, result: Any) -> Any:
    """``result`` of a call of NVRTC: its status, then what it returns."""
    if result[0] != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise BuildError(f"NVRTC failed with {result[0].name}; reinstall it: {INSTALL}")
    return result


def _log(nvrtc: Any, program: Any) -> str:
    """What the compiler said."""
    _, size = _checked(nvrtc, nvrtc.nvrtcGetProgramLogSize(program))
    text = bytes(size)
    _checked(nvrtc, nvrtc.nvrtcGetProgramLog(program, text))
    return text.decode(errors="replace").strip("\0")


def _errors(text: str) -> str:
    """The errors in what the compiler said, in one line."""
    return "; ".join(line for line in text.splitlines() if "error" in line) or "no reason was given"
