"""Writes a bundle so that it is either there as a whole or not at all."""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import fcntl
import glob
import importlib.metadata
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from qcompiler.driver.c_runtime import c_runtime_files
from qcompiler.driver.cross.libraries import runtime_libraries
from qcompiler.errors import BundleError
from qcompiler.runtime.library import sha256
from qcompiler.runtime.manifest import (
    CONSTANT_ALIGNMENT,
    LIBRARY_NAME,
    MANIFEST_NAME,
    ConstantSpec,
    Manifest,
)
from qcompiler.runtime.manifest_text import MANIFEST_TEXT_NAME, manifest_text
from qcompiler.runtime.signature import SIGNATURE_NAME

REFERENCE_NAME = "reference.json.gz"
"""File of a bundle that holds the module the reference interprets."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
"""Linux's ``renameat2`` flag: swap two paths in one step."""


def license_files(family: str) -> dict[str, Path]:
    """The licences under which a bundle passes on TVM's libraries, and NVIDIA's with them, by their paths in it."""
    packages = ("apache-tvm", "apache-tvm-ffi", *(["nvidia-cuda-runtime"] if family == "cuda" else []))
    return {
        f"licenses/{package}/{file.name}": Path(str(file.locate()))
        for package in packages
        for file in importlib.metadata.files(package) or ()
        if file.parent.name == "licenses"
    }


def write(
    destination: str | os.PathLike[str],
    library: Path,
    manifest: Manifest,
    extra_files: Mapping[str, Path | bytes] | None = None,
) -> Path:
    """Writes a bundle: into a folder beside ``destination``, which is then renamed.

    A process that is killed at any moment leaves at ``destination`` what was there before, or the whole new
    bundle. The unfinished folder it leaves beside it is removed by the next call.

    Args:
        destination: the bundle's folder. It must not exist yet, or be a bundle or an empty folder, which is
            replaced.
        library: the model's shared library.
        manifest: what the bundle's manifest says; its ``files`` are filled in here.
        extra_files: further files, by path relative to the bundle: a file to copy, or its content.

    Returns:
        The bundle's folder.

    Raises:
        BundleError: ``destination`` exists and is no bundle, a file's path leaves the bundle or is taken, or
            the bundle cannot be written, for lack of room or permission.
        BuildError: the C runtime cannot be compiled, or the runtime libraries of the target's architecture cannot
            be had.
    """
    target = Path(destination).absolute()
    sources: dict[str, Path | bytes] = {
        LIBRARY_NAME: library,
        **runtime_libraries(str(manifest.target["family"])),
        **license_files(str(manifest.target["family"])),
        **c_runtime_files(manifest),
    }
    for name, source in (extra_files or {}).items():
        _check_extra(name, sources)
        sources[name] = source
    _check_replaceable(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        with _partial_folder(target) as partial:
            for name, source in sources.items():
                _write_file(partial / name, source)
            digests = {name: sha256(partial / name) for name in sources}
            complete = dataclasses.replace(manifest, files=digests)
            json_bytes = complete.to_json().encode()
            _write_file(partial / MANIFEST_NAME, json_bytes)
            _write_file(partial / MANIFEST_TEXT_NAME, manifest_text(complete, json_bytes))
            for folder in (*(p for p in partial.rglob("*") if p.is_dir()), partial):
                sync_folder(folder)
            _move_into_place(partial, target)
            sync_folder(target.parent)
    except OSError as error:
        raise BundleError(f"bundle {target} cannot be written: {error}") from error
    return target


def constant_specs(constants: Sequence[NDArray[Any]]) -> tuple[ConstantSpec, ...]:
    """Where each of ``constants`` stands in :func:`constants_bytes`."""
    specs = []
    offset = 0
    for values in constants:
        specs.append(ConstantSpec(values.shape, values.dtype.name, offset))
        offset += -(-values.nbytes // CONSTANT_ALIGNMENT) * CONSTANT_ALIGNMENT
    return tuple(specs)


def constants_bytes(constants: Sequence[NDArray[Any]]) -> bytes:
    """The content of ``constants.bin``: dense arrays, each at a multiple of 64 bytes, with zeros between them."""
    return b"".join(values.tobytes() + bytes(-values.nbytes % CONSTANT_ALIGNMENT) for values in constants)


def _check_extra(name: str, taken: Mapping[str, object]) -> None:
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or path.as_posix() != name or not path.parts:
        raise BundleError(
            f"extra file {name!r}: give a plain path relative to the bundle, such as 'NOTES.md'"
        )
    if name in taken or name in (MANIFEST_NAME, MANIFEST_TEXT_NAME, SIGNATURE_NAME):
        raise BundleError(f"extra file {name!r} is a file that every bundle has; choose another name")


def _check_replaceable(target: Path) -> None:
    """Refuses to replace what may be somebody's data; only bundles and empty folders may go."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise BundleError(f"{target} exists and is not a folder; choose another output or remove it")
    if any(target.iterdir()) and not (
        (target / MANIFEST_NAME).is_file() and (target / LIBRARY_NAME).is_file()
    ):
        raise BundleError(f"{target} exists and is no bundle; choose another output or remove it")


def _prefix(target: Path) -> str:
    return f".{target.name}.partial-"


@contextmanager
def _partial_folder(target: Path) -> Iterator[Path]:
    """A new folder beside ``target``, locked while this process lives and removed if still there after."""
    while True:
        partial = target.parent / (_prefix(target) + secrets.token_hex(8))
        partial.mkdir()
        descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if partial.exists():
            break
        # Another process cleared it away between its making and its locking.
        os.close(descriptor)
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Removes folders of writers that were killed: nobody holds their locks."""
    for leftover in target.parent.glob(glob.escape(_prefix(target)) + "*"):
        try:
            descriptor = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # its writer has just finished
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its writer is at work
        else:
            shutil.rmtree(leftover, ignore_errors=True)
        finally:
            os.close(descriptor)


def _write_file(path: Path, source: Path | bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        if isinstance(source, bytes):
            file.write(source)
        else:
            with source.open("rb") as original:
                shutil.copyfileobj(original, file, 1 << 20)
        file.flush()
        os.fsync(file.fileno())
    if not isinstance(source, bytes):
        path.chmod(source.stat().st_mode & 0o777)


def sync_folder(folder: Path) -> None:
    """Brings the names in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move_into_place(partial: Path, target: Path) -> None:
    """Puts ``partial`` at ``target``; what was there is at ``partial`` afterwards."""
    try:
        partial.rename(target)  # succeeds where nothing or an empty folder is
        return
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    if _exchange(partial, target):
        return
    # A file system that cannot swap: for an instant neither is at the target, but both exist as a whole.
    old = partial.with_name(partial.name + "-old")
    target.rename(old)
    partial.rename(target)
    shutil.rmtree(old)


def _exchange(a: Path, b: Path) -> bool:
    """Swaps two folders in one step; False where the file system or the kernel cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS):
        return False
    raise OSError(code, os.strerror(code), str(b))
