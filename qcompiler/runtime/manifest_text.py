"""``manifest.txt``: what the C runtime needs of the manifest, in lines, and the digest of every other file.

It follows from ``manifest.json`` alone and says nothing new. Its last line is the SHA-256 of the lines before, and
one of these is the SHA-256 of ``manifest.json``; so either file shows damage of the other, and a signature of
``manifest.txt`` covers the whole bundle.

A line is a keyword and fields with a space between them. Bytes of a field other than plain characters are written as
``%XX``.
"""

from __future__ import annotations

import hashlib
import struct
import urllib.parse
from collections.abc import Iterable, Sequence

from qcompiler.errors import BundleError
from qcompiler.runtime.manifest import FORMAT_VERSION, MANIFEST_NAME, Manifest, TensorSpec

MANIFEST_TEXT_NAME = "manifest.txt"
_DIGEST = "sha256"


def manifest_text(manifest: Manifest, json_bytes: bytes) -> bytes:
    """The content of ``manifest.txt``.

    Args:
        manifest: the bundle's manifest.
        json_bytes: the content of ``manifest.json``.
    """
    needs = {"target": [(manifest.target_name, manifest.required_features)]}
    needs["alternative"] = [(t.name, t.required_features) for t in manifest.alternatives]
    files = {**manifest.files, MANIFEST_NAME: hashlib.sha256(json_bytes).hexdigest()}
    lines = [
        _line("qcompiler-bundle", [str(FORMAT_VERSION)]),
        *(_line(kind, [name, *features]) for kind, targets in needs.items() for name, features in targets),
        _line("family", [str(manifest.target["family"])]),
        *([] if manifest.least_capability is None else [_line("gpu", [str(manifest.least_capability)])]),
        *(_tensor("input", spec) for spec in manifest.inputs),
        *(_tensor("output", spec) for spec in manifest.outputs),
        *(_line("constant", [c.dtype, _shape(c.shape), str(c.offset)]) for c in manifest.constants),
        *(_line("file", [digest, path]) for path, digest in sorted(files.items())),
    ]
    content = "".join(lines).encode("ascii")
    return content + f"{_DIGEST} {hashlib.sha256(content).hexdigest()}\n".encode("ascii")


def check_manifest_text(manifest: Manifest, json_bytes: bytes, text: bytes) -> None:
    """Checks that ``manifest.json`` and ``manifest.txt`` are undamaged and belong together.

    Raises:
        BundleError: the message says which of the two is damaged, as far as that can be told.
    """
    content, _, last = text.rstrip(b"\n").rpartition(b"\n")
    content += b"\n"
    if text != content + last + b"\n" or last != f"{_DIGEST} {hashlib.sha256(content).hexdigest()}".encode():
        raise BundleError(
            f"{MANIFEST_TEXT_NAME} is damaged (its last line is not the SHA-256 of the others); copy the bundle "
            "again, or compile the model again"
        )
    if _line("file", [hashlib.sha256(json_bytes).hexdigest(), MANIFEST_NAME]).encode() not in content:
        raise BundleError(
            f"{MANIFEST_NAME} is damaged (its SHA-256 is not the one in {MANIFEST_TEXT_NAME}); copy the bundle "
            "again, or compile the model again"
        )
    if manifest_text(manifest, json_bytes) != text:
        raise BundleError(
            f"{MANIFEST_TEXT_NAME} does not say what {MANIFEST_NAME} says; compile the model again"
        )


def _line(keyword: str, fields: Iterable[str]) -> str:
    return " ".join([keyword, *(urllib.parse.quote(field, safe="/,:+") for field in fields)]) + "\n"


def _shape(extents: Sequence[int]) -> str:
    return ",".join(map(str, extents)) or "-"


def _tensor(kind: str, spec: TensorSpec) -> str:
    quantization = "-"
    if spec.scale is not None:
        (bits,) = struct.unpack("<Q", struct.pack("<d", spec.scale))
        quantization = f"{bits:016x}:{spec.zero_point}"
    return _line(kind, [spec.name, spec.dtype, _shape(spec.shape), quantization])
