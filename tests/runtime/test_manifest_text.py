"""``manifest.txt`` follows from ``manifest.json``, and either shows damage of the other."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import struct

import pytest
import small_bundle

from qcompiler.errors import BundleError
from qcompiler.runtime import TensorSpec
from qcompiler.runtime.manifest import ConstantSpec, Manifest
from qcompiler.runtime.manifest_text import check_manifest_text, manifest_text

JSON = b"{}"


def with_digest(content: str) -> bytes:
    return f"{content}sha256 {hashlib.sha256(content.encode()).hexdigest()}\n".encode()


def sample() -> Manifest:
    return dataclasses.replace(
        small_bundle.manifest(),
        inputs=(TensorSpec("an input%", (), "float32", 0.5, 128),),
        outputs=(TensorSpec("y", (1, 10), "float32"),),
        constants=(ConstantSpec((3, 5), "int8", 64),),
        files={"b": "1" * 64, "a file": "0" * 64},
    )


def test_lines() -> None:
    bits = struct.pack(">d", 0.5).hex()
    assert manifest_text(sample(), JSON) == with_digest(
        "qcompiler-bundle 4\n"
        "target x86-avx2 avx2 fma\n"
        "alternative x86-avx512 avx512f\n"
        "alternative x86-sse sse2\n"
        "family x86\n"
        f"input an%20input%25 float32 - {bits}:128\n"
        "output y float32 1,10 -\n"
        "constant int8 3,5 64\n"
        f"file {'0' * 64} a%20file\n"
        f"file {'1' * 64} b\n"
        f"file {hashlib.sha256(JSON).hexdigest()} manifest.json\n"
    )


def test_what_was_written_is_accepted() -> None:
    check_manifest_text(sample(), JSON, manifest_text(sample(), JSON))


@pytest.mark.parametrize(
    ("manifest", "json_bytes", "text", "message"),
    [
        (sample(), JSON, b"", "manifest.txt is damaged"),
        (sample(), JSON, b"\n", "manifest.txt is damaged"),
        (sample(), JSON, manifest_text(sample(), JSON)[:-1], "manifest.txt is damaged"),
        (sample(), JSON, manifest_text(sample(), JSON) + b"\n", "manifest.txt is damaged"),
        (sample(), JSON, manifest_text(sample(), JSON).replace(b"avx2", b"avx3"), "manifest.txt is damaged"),
        (sample(), b"{ }", manifest_text(sample(), JSON), "manifest.json is damaged"),
        (
            dataclasses.replace(sample(), constants=()),
            JSON,
            manifest_text(sample(), JSON),
            "does not say what manifest.json says",
        ),
    ],
)
def test_damage(manifest: Manifest, json_bytes: bytes, text: bytes, message: str) -> None:
    with pytest.raises(BundleError, match=re.escape(message)):
        check_manifest_text(manifest, json_bytes, text)
