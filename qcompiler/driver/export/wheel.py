"""A bundle as a Python wheel: a package with the bundle in it, which needs NumPy and nothing else."""

from __future__ import annotations

import base64
import hashlib
import time
import zipfile
from pathlib import Path
from typing import BinaryIO

from qcompiler.driver.export import wheel_module
from qcompiler.driver.export.content import Package, Source, read

_METADATA = """\
Metadata-Version: 2.1
Name: {name}
Version: {version}
Summary: Compiled neural network, for {target}
Requires-Python: >=3.10
Requires-Dist: numpy

A neural network that qcompiler {qcompiler} compiled, with its runtime.

    import {module}
    outputs = {module}.load().run(*inputs)
"""

_WHEEL = """\
Wheel-Version: 1.0
Generator: qcompiler {qcompiler}
Root-Is-Purelib: false
Tag: {tag}
"""


def file_name(package: Package) -> str:
    return f"{_module(package)}-{package.version}-{_tag(package)}.whl"


def write(package: Package, file: BinaryIO) -> None:
    """Writes the wheel."""
    module, info = _module(package), f"{_module(package)}-{package.version}.dist-info"
    values = {
        "name": package.name,
        "version": package.version,
        "module": module,
        "target": package.manifest.target_name,
        "qcompiler": package.manifest.versions.qcompiler,
        "tag": _tag(package),
    }
    files: dict[str, Source] = {f"{module}/bundle/{n}": source for n, source in package.files().items()}
    files[f"{module}/__init__.py"] = Path(wheel_module.__file__)
    files[f"{module}/py.typed"] = b""
    files[f"{info}/METADATA"] = _METADATA.format(**values).encode()
    files[f"{info}/WHEEL"] = _WHEEL.format(**values).encode()
    record = f"{info}/RECORD"
    files[record] = "".join(
        [*(_recorded(n, read(files[n])) for n in sorted(files)), f"{record},,\n"]
    ).encode()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        # The description of the package comes last, as the format recommends.
        for name in sorted(files, key=lambda n: (n.startswith(info), n)):
            entry = zipfile.ZipInfo(name, time.gmtime(package.time)[:6])
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix, wherever this runs
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, read(files[name]))


def _module(package: Package) -> str:
    return package.name.replace("-", "_")


def _tag(package: Package) -> str:
    return f"py3-none-{package.machine.wheel_tag}"


def _recorded(name: str, content: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}\n"
