"""Packs a bundle into one file that other programs install: a tarball, a Python wheel, or a Debian package."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from qcompiler import runtime
from qcompiler.driver.export import deb, tarball, wheel
from qcompiler.driver.export.content import Package, timestamp
from qcompiler.driver.machines import machine_of
from qcompiler.errors import BundleError, ConfigError

Format = Literal["tar", "wheel", "deb"]

_WRITERS: Mapping[str, tuple[Callable[[Package], str], Callable[[Package, BinaryIO], None]]] = {
    "tar": (tarball.file_name, tarball.write),
    "wheel": (wheel.file_name, wheel.write),
    "deb": (deb.file_name, deb.write),
}

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_VERSION = re.compile(r"[0-9]+(\.[0-9]+)*")


@dataclass(frozen=True)
class Exported:
    """The file that :func:`export` wrote, and its size in bytes."""

    path: Path
    format: str
    name: str
    version: str
    size: int


def export(
    bundle: Path,
    format: Format,
    output: Path,
    *,
    name: str | None = None,
    version: str = "1.0.0",
    maintainer: str = "unknown <unknown@localhost>",
) -> Exported:
    """Packs a bundle, as it is, into one file. The same bundle and options give the same bytes.

    Times in the file are ``SOURCE_DATE_EPOCH`` of the environment, or the first second of 1980.

    Args:
        bundle: the bundle's folder; it is checked first.
        format: ``tar``, ``wheel`` or ``deb``.
        output: the file to write; or a folder, in which it gets the usual name. What is not there is made: a folder if
            its name has no ending.
        name: name of the package: small letters, digits, and hyphens between them; None to make it of the
            folder's name.
        version: version of the package: numbers with points between them.
        maintainer: for ``deb``, name and address of who answers for the package.

    Raises:
        BundleError: the bundle is damaged, or the file cannot be written.
        ConfigError: an option is not allowed.
    """
    if format not in _WRITERS:
        raise ConfigError(f"unknown format {format!r}; known: {', '.join(get_args(Format))}")
    if not _VERSION.fullmatch(version):
        raise ConfigError(f"version is {version!r}; give numbers with points between them, as 1.0.0")
    if "\n" in maintainer or not maintainer.strip():
        raise ConfigError(f"maintainer is {maintainer!r}; give a name and an address, as 'A B <a@b.c>'")
    manifest = runtime.verify(bundle)
    package = Package(
        bundle=bundle,
        manifest=manifest,
        machine=machine_of(str(manifest.target["family"])),
        name=_package_name(name, bundle),
        version=version,
        maintainer=maintainer,
        time=timestamp(),
    )
    name_of, write = _WRITERS[format]
    path = _path(output, name_of(package), format)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                write(package, file)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error}") from error
    return Exported(path, format, package.name, version, path.stat().st_size)


def _package_name(name: str | None, bundle: Path) -> str:
    made = name
    if made is None:
        made = re.sub(r"[^a-z0-9]+", "-", bundle.resolve().name.lower()).strip("-")
    if len(made) < 2 or not _NAME.fullmatch(made):
        raise ConfigError(
            f"package name is {made!r}; give --name with small letters, digits, and hyphens between them, as my-model"
        )
    return made


def _path(output: Path, usual: str, format: Format) -> Path:
    if output.is_dir() or not output.suffix:
        return output / usual
    # pip reads a wheel's name, version and machine from its file's name.
    if format == "wheel" and output.name != usual:
        raise ConfigError(
            f"a wheel must be called {usual}; give --output as a folder, or as a path with that name"
        )
    return output
