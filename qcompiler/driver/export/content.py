"""What the formats share: the package to write, its files, and times that do not change from run to run."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from qcompiler.driver.machines import Machine
from qcompiler.errors import ConfigError
from qcompiler.runtime import Manifest
from qcompiler.runtime.manifest import MANIFEST_NAME
from qcompiler.runtime.manifest_text import MANIFEST_TEXT_NAME
from qcompiler.runtime.signature import SIGNATURE_NAME

EARLIEST = 315532800
"""1980-01-01T00:00:00Z, the first moment that a zip archive, which a wheel is, can name."""

Source = Path | bytes


@dataclass(frozen=True)
class Package:
    """A bundle and what its package says of it.

    Attributes:
        bundle: the bundle's folder.
        manifest: its manifest.
        machine: where it runs.
        name: name of the package.
        version: version of the package.
        maintainer: name and address of who answers for it.
        time: modification time of everything in it, in seconds since 1970.
    """

    bundle: Path
    manifest: Manifest
    machine: Machine
    name: str
    version: str
    maintainer: str
    time: int

    def files(self) -> dict[str, Source]:
        """The bundle's files, by path relative to it, sorted."""
        names = {*self.manifest.files, MANIFEST_NAME, MANIFEST_TEXT_NAME}
        if (self.bundle / SIGNATURE_NAME).is_file():
            names.add(SIGNATURE_NAME)
        return {name: self.bundle / name for name in sorted(names)}


def read(source: Source) -> bytes:
    return source if isinstance(source, bytes) else source.read_bytes()


def timestamp() -> int:
    """``SOURCE_DATE_EPOCH``, by which builds are told the time; :data:`EARLIEST` if it is not set.

    Raises:
        ConfigError: it is no number of seconds, or before 1980.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if text is None:
        return EARLIEST
    if not text.isdecimal() or int(text) < EARLIEST:
        raise ConfigError(
            f"SOURCE_DATE_EPOCH is {text!r}; it must be seconds since 1970, at least {EARLIEST}, or not set"
        )
    return int(text)


@contextmanager
def compressed_tar(file: BinaryIO, time: int) -> Iterator[tarfile.TarFile]:
    """A ``.tar.gz`` in ``file``, whose bytes depend on what is added alone."""
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=time) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        yield archive


def add_files(archive: tarfile.TarFile, files: Mapping[str, Source], time: int, prefix: str = "") -> None:
    """Adds files with the folders that they are in, owned by root, in the order of their names.

    Every name gets ``prefix`` before it.
    """
    folders = {str(parent) for name in files for parent in PurePosixPath(name).parents} - {".", "/"}
    for name in sorted({*files, *folders}):
        info = tarfile.TarInfo(prefix + name)
        info.mtime = time
        info.uname = info.gname = "root"
        if name in files:
            content = read(files[name])
            info.mode, info.size = 0o644, len(content)
            archive.addfile(info, io.BytesIO(content))
        else:
            info.type, info.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(info)
