"""Exports a library whose GPU code is machine code already.

TVM embeds CUDA source where no GPU is, and compiles it when the library is loaded, through a callback in Python. Here the
source is taken out of what TVM is about to embed, compiled, and put back as code that the driver takes. What TVM embeds
is a sequence of modules; its layout is TVM's own, so it is read and written in full, and must come out as it went in.

All numbers are little endian, u64 unless said; a string is its length and its bytes:

- the bytes that follow;
- which modules import which: two vectors, each its length and its elements; the first has an element more than modules;
- each module: its kind, and unless that is ``_lib``, which stands for the host's code, its content as a string.

The content of a module of kind ``cuda``: the code's format, the number of functions, each with its key, its name, its
arguments' dtypes (a count, and 4 bytes each), its launch parameters (a count, strings) and attributes of its arguments
(a count, i32 each); then the code. Any format but ``cuda``, which is source, is given to the driver as it is.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tvm

from qcompiler.driver.link import link_shared
from qcompiler.errors import BuildError

_HOST = "_lib"
_CUDA = "cuda"
_FALLBACK = "TVM_COMPILE_FORCE_FALLBACK"


def export_library(executable: Any, library: Path, compile_source: Callable[[str], bytes]) -> None:
    """Writes ``executable`` as a shared library.

    Args:
        executable: what ``relax.build`` made.
        library: path of the file.
        compile_source: from the CUDA source of all kernels to code that the driver takes.

    Raises:
        BuildError: TVM embeds something else than is known here, or linking failed.
    """

    def pack(module: Any, is_system_library: bool, prefix: str, folder: str) -> str:
        blob = bytes(tvm.get_global_func("runtime.ModulePackImportsToTensor")(module).numpy())
        host = next(m for m in module._collect_dso_modules() if m.kind == "llvm")
        compiled = replace_source(blob, compile_source)
        path = os.path.join(folder, f"{prefix}devc.o")
        make = tvm.get_global_func("codegen.codegen_blob")
        make(compiled, is_system_library, host.get_function("_get_target_string")(), prefix).write_to_file(
            path
        )
        return path

    executable.mod.export_library(str(library), fcompile=link_shared, fpack_imports=pack)


@contextmanager
def source_only() -> Iterator[None]:
    """Within, TVM generates source alone, on machines with a GPU as on those without."""
    before = os.environ.get(_FALLBACK)
    os.environ[_FALLBACK] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_FALLBACK]
        else:
            os.environ[_FALLBACK] = before


def replace_source(blob: bytes, compile_source: Callable[[str], bytes]) -> bytes:
    """``blob``, which TVM is about to embed, with code instead of CUDA source.

    Raises:
        BuildError: its layout is another one.
    """
    imports, modules = _read_modules(blob)
    if _write_modules(imports, modules) != blob:
        raise BuildError("TVM embeds GPU code in a layout that is not known; install the pinned apache-tvm")
    replaced = []
    for kind, content in modules:
        if kind == _CUDA and content is not None:
            code = _CudaModule.read(content)
            if code.write() != content or code.format != _CUDA:
                raise BuildError(
                    f"TVM made GPU code of format {code.format!r}, expected its source; install the pinned apache-tvm"
                )
            content = _CudaModule("fatbin", code.functions, compile_source(code.code.decode())).write()
        replaced.append((kind, content))
    return _write_modules(imports, replaced)


class _Reader:
    """Reads values one after the other."""

    def __init__(self, content: bytes) -> None:
        self.content, self.position = content, 0

    def take(self, size: int) -> bytes:
        part = self.content[self.position : self.position + size]
        if len(part) != size:
            raise BuildError(
                "TVM embeds GPU code in a layout that is not known; install the pinned apache-tvm"
            )
        self.position += size
        return part

    def number(self) -> int:
        return int(struct.unpack("<Q", self.take(8))[0])

    def string(self) -> bytes:
        return self.take(self.number())

    def numbers(self) -> list[int]:
        return [self.number() for _ in range(self.number())]


def _number(value: int) -> bytes:
    return struct.pack("<Q", value)


def _string(content: bytes) -> bytes:
    return _number(len(content)) + content


_Modules = list[tuple[str, bytes | None]]


def _read_modules(blob: bytes) -> tuple[list[list[int]], _Modules]:
    reader = _Reader(_Reader(blob).string())
    imports = [reader.numbers(), reader.numbers()]
    modules: _Modules = []
    for _ in range(len(imports[0]) - 1):
        kind = reader.string().decode()
        modules.append((kind, None if kind == _HOST else reader.string()))
    return imports, modules


def _write_modules(imports: Sequence[Sequence[int]], modules: _Modules) -> bytes:
    parts = [_number(len(v)) + b"".join(map(_number, v)) for v in imports]
    for kind, content in modules:
        parts.append(_string(kind.encode()) + (b"" if content is None else _string(content)))
    return _string(b"".join(parts))


@dataclass(frozen=True)
class _CudaModule:
    """The content of a module of GPU code; ``functions`` is kept as it is."""

    format: str
    functions: bytes
    code: bytes

    @classmethod
    def read(cls, content: bytes) -> _CudaModule:
        reader = _Reader(content)
        kind = reader.string().decode()
        start = reader.position
        for _ in range(reader.number()):
            reader.string()
            reader.string()
            reader.take(4 * reader.number())
            for _ in range(reader.number()):
                reader.string()
            reader.take(4 * reader.number())
        return cls(kind, content[start : reader.position], reader.string())

    def write(self) -> bytes:
        return _string(self.format.encode()) + self.functions + _string(self.code)
