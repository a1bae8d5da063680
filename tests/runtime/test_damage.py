"""A bundle that is not as it was written is refused, in Python and in C, before anything of it is loaded."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import small_bundle
from c_programs import CProgram

from qcompiler.errors import BundleError, CpuError
from qcompiler.runtime import Manifest, load
from qcompiler.runtime import bundle as bundle_module

Refused = Callable[[Path, str, str], None]


@pytest.fixture(scope="module")
def shared(small_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy that tests change and put in order again."""
    return shutil.copytree(small_bundle_path, tmp_path_factory.mktemp("damage") / "bundle")


@pytest.fixture
def bundle(small_bundle_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle_path, tmp_path / "bundle")


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, c_example: CProgram) -> Refused:
    """Asserts that a bundle is refused with a message, in Python and in C, with nothing of it loaded."""

    def refuse(*_: object) -> None:
        raise AssertionError("the library was loaded before the checks were done")

    monkeypatch.setattr(bundle_module, "load_library", refuse)

    def check(bundle: Path, in_python: str, in_c: str, error: type[BundleError] = BundleError) -> None:
        with pytest.raises(error, match=in_python):
            load(bundle)
        ended = c_example.run(bundle)
        assert ended.status == 1, (ended.status, ended.err)
        assert re.search(in_c, ended.err), ended.err
        assert ended.err.startswith("error: ")
        assert ended.err.count("\n") == 1
        assert not [name for name in ended.loaded if "tvm" in name or name == "model.so"]

    return check


@contextmanager
def changed(path: Path, content: bytes) -> Iterator[None]:
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def flips(size: int, name: str) -> list[int]:
    """Positions in each region of a file: its ends, and one in each quarter."""
    rng = np.random.default_rng(sum(name.encode()))
    quarters = [int(rng.integers(k * size // 4, (k + 1) * size // 4)) for k in range(4)]
    return sorted({0, *quarters, size - 1})


def test_the_bundle_as_written_is_loaded(shared: Path, c_example: CProgram) -> None:
    load(shared)
    ended = c_example.run(shared)
    assert ended.status == 0
    assert {"libtvm_ffi.so", "libtvm_runtime.so", "model.so"} <= ended.loaded


def test_a_flipped_byte_anywhere(shared: Path, refused: Refused) -> None:
    for name in names(shared):
        file = shared / name
        content = file.read_bytes()
        for position in flips(len(content), name):
            flipped = bytearray(content)
            flipped[position] ^= 1 << position % 8
            with changed(file, bytes(flipped)):
                if name.startswith("manifest."):
                    # In Python a damaged manifest may be one of another format, no text, or no JSON.
                    refused(shared, "manifest", rf"{name} is (damaged|not the manifest)|has format")
                else:
                    refused(shared, f"{name} is damaged", f"{name} is damaged")


def test_a_truncated_file(shared: Path, refused: Refused) -> None:
    for name in names(shared):
        content = (shared / name).read_bytes()
        for length in (0, len(content) // 2, len(content) - 1):
            with changed(shared / name, content[:length]):
                damage = "manifest" if name.startswith("manifest.") else f"{name} is damaged"
                refused(shared, damage, rf"{name} is (damaged|not the manifest)")


def test_a_longer_file(shared: Path, refused: Refused) -> None:
    for name in names(shared):
        with changed(shared / name, (shared / name).read_bytes() + b"\0"):
            refused(
                shared,
                "manifest" if name.startswith("manifest.") else f"{name} is damaged",
                f"{name} is damaged",
            )


def test_a_missing_file(shared: Path, refused: Refused, tmp_path: Path) -> None:
    for name in names(shared):
        (shared / name).rename(tmp_path / "away")
        try:
            if name == "manifest.json":
                refused(shared, f"no readable {name}", f"lacks {name}")
            else:
                refused(shared, f"lacks {name}", f"lacks {name}|{name} cannot be read: No such file")
        finally:
            (tmp_path / "away").rename(shared / name)


@pytest.mark.parametrize("kind", [Path.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_something_else_in_place_of_a_file(
    bundle: Path, refused: Refused, kind: Callable[[Path], None]
) -> None:
    (bundle / "constants.bin").unlink()
    kind(bundle / "constants.bin")
    refused(bundle, r"lacks constants\.bin", r"lacks constants\.bin")


def test_files_of_another_bundle(shared: Path, other_small_bundle_path: Path, refused: Refused) -> None:
    swapped = 0
    for name in names(shared):
        other = (other_small_bundle_path / name).read_bytes()
        if other == (shared / name).read_bytes():
            continue
        swapped += 1
        with changed(shared / name, other):
            # With the other's list of digests, the other files are what is wrong.
            if name == "manifest.txt":
                refused(shared, "manifest.json is damaged", r"constants\.bin is damaged")
            elif name == "manifest.json":
                refused(shared, "manifest.json is damaged", "manifest.json is damaged")
            else:
                refused(shared, f"{name} is damaged", f"{name} is damaged")
    assert swapped == 3, "constants and both manifests differ"


def test_files_that_changed_places(bundle: Path, refused: Refused) -> None:
    library, constants = (bundle / "model.so").read_bytes(), (bundle / "constants.bin").read_bytes()
    (bundle / "model.so").write_bytes(constants)
    (bundle / "constants.bin").write_bytes(library)
    refused(bundle, r"constants\.bin is damaged", r"constants\.bin is damaged")


@pytest.mark.parametrize("name", ["stray.txt", "lib/libextra.so", "deep/down/x"])
def test_a_file_too_many(bundle: Path, refused: Refused, name: str) -> None:
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_text("x")
    refused(bundle, f"does not list: {name}", f"does not list: {name}")


def test_a_bundle_that_is_not_there(tmp_path: Path, refused: Refused) -> None:
    refused(tmp_path / "none", "does not exist", "cannot be opened: No such file.*; give the folder")
    (tmp_path / "file").write_text("x")
    refused(tmp_path / "file", "is a file; give the folder", "is a file; give the folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no readable manifest", r"manifest\.txt cannot be read: No such file")


def retarget(bundle: Path, **changes: object) -> None:
    def change(manifest: Manifest) -> Manifest:
        return dataclasses.replace(manifest, target={**manifest.target, **changes})

    small_bundle.rewrite(bundle, change)


def test_another_cpus_bundle(bundle: Path, refused: Callable[..., None]) -> None:
    retarget(bundle, name="x86-future", required_features=["sse2", "avx4096"])
    message = (
        r"target x86-future needs CPU features that .* lacks: avx4096; compile .*--target x86-(avx512|sse)"
    )
    refused(bundle, message, message, CpuError)


def test_another_architectures_bundle(bundle: Path, refused: Callable[..., None]) -> None:
    retarget(bundle, name="riscv-x", family="riscv")
    refused(bundle, "bundle is for riscv Linux", "bundle is for riscv Linux .*; this machine is", CpuError)


def test_another_formats_bundle(bundle: Path, refused: Refused) -> None:
    for name, old, new in (
        ("manifest.json", b'"format_version": 4', b'"format_version": 5'),
        ("manifest.txt", b"qcompiler-bundle 4", b"qcompiler-bundle 5"),
    ):
        (bundle / name).write_bytes((bundle / name).read_bytes().replace(old, new))
    refused(
        bundle, "has format 5; this qcompiler reads format 4", "has format 5; this runtime reads format 4"
    )


def test_constants_that_are_too_short_for_their_list(bundle: Path, c_example: CProgram) -> None:
    (bundle / "constants.bin").write_bytes(bytes(64))
    small_bundle.rewrite(bundle, lambda manifest: manifest, rehash=True)
    with pytest.raises(BundleError, match=r"constants\.bin has 64 bytes, and the manifest says 8216"):
        load(bundle)
    ended = c_example.run(bundle)
    assert ended.status == 1
    assert "constants.bin is smaller than the manifest says" in ended.err
