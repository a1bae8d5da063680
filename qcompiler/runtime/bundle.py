"""Reads a bundle: a folder with ``model.so``, ``manifest.json`` and the runtime libraries in ``lib``."""

from __future__ import annotations

import os
from pathlib import Path

from qcompiler.errors import BundleError
from qcompiler.runtime.cpu import check_cpu
from qcompiler.runtime.gpu import check_gpu
from qcompiler.runtime.library import load_library, map_constants, sha256_of_files
from qcompiler.runtime.manifest import (
    CONSTANTS_NAME,
    GPU_LIBRARY_NAMES,
    MANIFEST_NAME,
    REQUIRED_FILES,
    Manifest,
)
from qcompiler.runtime.manifest_text import MANIFEST_TEXT_NAME, check_manifest_text
from qcompiler.runtime.model import Model
from qcompiler.runtime.signature import SIGNATURE_NAME, check_signature
from qcompiler.runtime.threads import check_threads


def load(
    bundle: str | os.PathLike[str],
    threads: int | None = None,
    *,
    require_signature: str | os.PathLike[str] | None = None,
) -> Model:
    """Loads a bundle. Nothing of it is executed before its files and this CPU have been checked.

    Args:
        bundle: the bundle's folder.
        threads: threads of one run, from 1 to the number of CPUs that the process may use; None for all
            physical cores that it may use. Models with different numbers may live in one process.
        require_signature: an Ed25519 public key in a PEM file; only a bundle that its owner has signed is loaded.

    Raises:
        BundleError: the bundle is missing, incomplete, damaged, of another format, or made with another
            version of the runtime.
        SignatureError: the bundle's signature is missing or wrong.
        CpuError: this CPU lacks features that the bundle needs.
        GpuError: the bundle needs a GPU or a driver that this machine lacks.
        ConfigError: ``threads`` is out of range, or ``require_signature`` is no such key.
    """
    count = check_threads(threads)
    path = Path(bundle)
    manifest = verify(path, require_signature=require_signature)
    check_cpu(manifest)
    check_gpu(manifest)
    return Model(manifest, load_library(path, manifest), count, map_constants(path, manifest))


def read_manifest(bundle: str | os.PathLike[str]) -> Manifest:
    """The manifest of a bundle, whose other files are not looked at.

    Raises:
        BundleError: there is no bundle, or its manifest is damaged or of another format version.
    """
    return _read_manifest(Path(bundle))[0]


def _read_manifest(path: Path) -> tuple[Manifest, bytes]:
    """The manifest and the bytes that it was read from."""
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise BundleError(f"bundle {path} {found}; give the folder that 'qcompile compile' wrote")
    try:
        content = (path / MANIFEST_NAME).read_bytes()
        text = content.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(
            f"bundle {path} has no readable {MANIFEST_NAME}: {error}; compile it again"
        ) from error
    try:
        return Manifest.from_json(text), content
    except BundleError as error:
        raise BundleError(f"bundle {path}: {error}") from error


def verify(
    bundle: str | os.PathLike[str], *, require_signature: str | os.PathLike[str] | None = None
) -> Manifest:
    """Checks a bundle's format, that exactly the files of its manifest are there, and the SHA-256 of each.

    Args:
        bundle: the bundle's folder.
        require_signature: as of :func:`load`.

    Returns:
        The bundle's manifest.

    Raises:
        BundleError: the message names the file and the fault.
        SignatureError: the bundle's signature is missing or wrong.
        ConfigError: ``require_signature`` is no key.
    """
    path = Path(bundle)
    manifest, json_bytes = _read_manifest(path)
    present = {p.relative_to(path).as_posix() for p in path.rglob("*") if not p.is_dir()} - {MANIFEST_NAME}
    files = {name for name in present if (path / name).is_file()}
    text = (path / MANIFEST_TEXT_NAME).read_bytes() if MANIFEST_TEXT_NAME in files else None
    if text is not None:  # before the files that it names: damage may be in a name
        try:
            check_manifest_text(manifest, json_bytes, text)
        except BundleError as error:
            raise BundleError(f"bundle {path}: {error}") from error
    gpu = GPU_LIBRARY_NAMES if manifest.architectures else ()
    required = {*manifest.files, *REQUIRED_FILES, *gpu, MANIFEST_TEXT_NAME}
    missing = sorted(required.union([CONSTANTS_NAME] if manifest.constants else []) - files)
    if missing:
        raise BundleError(
            f"bundle {path} lacks {', '.join(missing)}; copy it again, or compile the model again"
        )
    extra = sorted(present - {*manifest.files, MANIFEST_TEXT_NAME, SIGNATURE_NAME})
    if extra:
        raise BundleError(
            f"bundle {path} has files that its manifest does not list: {', '.join(extra)}; remove them"
        )
    assert text is not None  # it is required
    if require_signature is not None:
        check_signature(path, text, Path(require_signature))
    found = sha256_of_files(path, manifest.files)
    for name, digest in sorted(manifest.files.items()):
        if found[name] != digest:
            raise BundleError(
                f"bundle {path}: {name} is damaged (its SHA-256 is not the manifest's); copy it again, or "
                "compile the model again"
            )
    return manifest
