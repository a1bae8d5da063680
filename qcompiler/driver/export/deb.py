"""A bundle as a Debian package, written directly: an ``ar`` archive of two compressed tarballs.

The bundle is installed as it is in ``/usr/lib/NAME``; ``pkg-config NAME`` gives the options to build against it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import BinaryIO

from qcompiler.driver.export.content import Package, Source, add_files, compressed_tar, read

_COPYRIGHT = """\
The model belongs to whoever made it; ask the maintainer.

The libraries libtvm_runtime.so and libtvm_ffi.so are Apache TVM's, licensed under the Apache License, Version 2.0,
which is in /usr/lib/{name}/licenses and, on Debian systems, in /usr/share/common-licenses/Apache-2.0.
"""

_PKG_CONFIG = """\
prefix=/usr/lib/{name}

Name: {name}
Description: Runs the compiled model in ${{prefix}}
Version: {version}
Cflags: -I${{prefix}}/include
Libs: -L${{prefix}}/lib -lqc_runtime -Wl,-rpath,${{prefix}}/lib
"""

_CONTROL = """\
Package: {name}
Version: {version}
Architecture: {architecture}
Maintainer: {maintainer}
Installed-Size: {kibibytes}
Depends: libc6 (>= 2.28), libgcc-s1, libstdc++6
Section: libs
Priority: optional
Description: compiled neural network {name}
 Compiled by qcompiler {qcompiler} for {target}, with its runtime,
 a C header, and examples.
"""


def file_name(package: Package) -> str:
    return f"{package.name}_{package.version}_{package.machine.debian}.deb"


def write(package: Package, file: BinaryIO) -> None:
    """Writes the package."""
    files = _installed(package)
    values = {
        "name": package.name,
        "version": package.version,
        "architecture": package.machine.debian,
        "maintainer": package.maintainer,
        "qcompiler": package.manifest.versions.qcompiler,
        "target": package.manifest.target_name,
        "kibibytes": sum(-(-len(read(source)) // 1024) for source in files.values()),
    }
    sums = "".join(f"{hashlib.md5(read(s)).hexdigest()}  {n}\n" for n, s in sorted(files.items()))
    control: dict[str, Source] = {"control": _CONTROL.format(**values).encode(), "md5sums": sums.encode()}
    file.write(b"!<arch>\n")
    _member(file, "debian-binary", b"2.0\n", package.time)
    _member(file, "control.tar.gz", _tar(control, package.time), package.time)
    _member(file, "data.tar.gz", _tar(files, package.time), package.time)


def _installed(package: Package) -> dict[str, Source]:
    """Every file of the package, by its path without the leading slash."""
    name, values = package.name, {"name": package.name, "version": package.version}
    files = {f"usr/lib/{name}/{path}": source for path, source in package.files().items()}
    files[f"usr/lib/{package.machine.multiarch}/pkgconfig/{name}.pc"] = _PKG_CONFIG.format(**values).encode()
    files[f"usr/share/doc/{name}/copyright"] = _COPYRIGHT.format(**values).encode()
    return files


def _tar(files: Mapping[str, Source], time: int) -> bytes:
    content = io.BytesIO()
    with compressed_tar(content, time) as archive:
        add_files(archive, files, time, prefix="./")  # as dpkg itself writes names
    return content.getvalue()


def _member(file: BinaryIO, name: str, content: bytes, time: int) -> None:
    """An entry of an ``ar`` archive: a header of 60 characters, then the content at even length."""
    file.write(f"{name:<16}{time:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode("ascii"))
    file.write(content + b"\n" * (len(content) % 2))
