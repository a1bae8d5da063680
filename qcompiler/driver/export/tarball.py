"""A bundle as ``.tar.gz``: one folder, which is the bundle."""

from __future__ import annotations

from typing import BinaryIO

from qcompiler.driver.export.content import Package, add_files, compressed_tar


def file_name(package: Package) -> str:
    return f"{_folder(package)}.tar.gz"


def write(package: Package, file: BinaryIO) -> None:
    """Writes the tarball; its only top-level entry has the file's name without the extension."""
    files = {f"{_folder(package)}/{name}": source for name, source in package.files().items()}
    with compressed_tar(file, package.time) as archive:
        add_files(archive, files, package.time)


def _folder(package: Package) -> str:
    return f"{package.name}-{package.version}-{package.machine.name}"
