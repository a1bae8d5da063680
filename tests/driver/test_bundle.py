"""A bundle is written as a whole or not at all, and never over what is none."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
from pathlib import Path

import pytest
import small_bundle

from qcompiler.driver import bundle
from qcompiler.driver.bundle import write
from qcompiler.errors import BundleError
from qcompiler.runtime import verify


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A stand-in for the model's library: writing does not look into it."""
    path = tmp_path / "library.so"
    path.write_bytes(b"library 1")
    return path


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_written_bundle_verifies(tmp_path: Path, library: Path) -> None:
    copied = tmp_path / "made.gz"
    copied.write_bytes(b"abc")
    extra = {"reference.json.gz": copied, "doc/README.md": b"hello"}
    path = write(tmp_path / "deep" / "bundle", library, small_bundle.manifest(), extra)
    assert path == tmp_path / "deep" / "bundle"
    assert set(verify(path).files) >= {"model.so", "reference.json.gz", "doc/README.md"}
    assert (path / "doc/README.md").read_bytes() == b"hello"
    assert hidden(path.parent) == []


def test_equal_input_gives_equal_files(tmp_path: Path) -> None:
    paths = [small_bundle.write(tmp_path / name, tmp_path) for name in ("a", "b")]
    contents = [{p.name: p.read_bytes() for p in path.rglob("*") if p.is_file()} for path in paths]
    assert contents[0] == contents[1]


@pytest.mark.parametrize("can_swap", [True, False])
def test_bundle_is_replaced(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch, can_swap: bool
) -> None:
    if not can_swap:
        monkeypatch.setattr(bundle, "_exchange", lambda *_: False)
    target = write(tmp_path / "bundle", library, small_bundle.manifest(), {"old.txt": b"old"})
    library.write_bytes(b"library 2")
    write(target, library, small_bundle.manifest())
    verify(target)
    assert (target / "model.so").read_bytes() == b"library 2"
    assert not (target / "old.txt").exists()
    assert hidden(tmp_path) == []


def test_damaged_bundle_is_replaced(tmp_path: Path, library: Path) -> None:
    target = write(tmp_path / "bundle", library, small_bundle.manifest())
    (target / "lib" / "libtvm_ffi.so").unlink()
    verify(write(target, library, small_bundle.manifest()))


def test_empty_folder_is_replaced(tmp_path: Path, library: Path) -> None:
    (tmp_path / "bundle").mkdir()
    verify(write(tmp_path / "bundle", library, small_bundle.manifest()))


def test_other_folder_file_and_link_are_left_alone(tmp_path: Path, library: Path) -> None:
    folder, file, link = tmp_path / "folder", tmp_path / "file", tmp_path / "link"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    file.write_text("text")
    link.symlink_to(folder)
    for target, message in ((folder, "is no bundle"), (file, "not a folder"), (link, "not a folder")):
        with pytest.raises(BundleError, match=rf"{message}.*choose another output"):
            write(target, library, small_bundle.manifest())
    assert (folder / "thesis.tex").read_text() == "years of work"
    assert hidden(tmp_path) == []


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", ".", "./x", "model.so", "manifest.json"])
def test_extra_file_must_stay_inside_and_apart(tmp_path: Path, library: Path, name: str) -> None:
    with pytest.raises(BundleError, match="extra file"):
        write(tmp_path / "bundle", library, small_bundle.manifest(), {name: b""})
    assert not (tmp_path / "bundle").exists()


def test_failure_leaves_the_old_bundle_and_nothing_else(
    tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write(tmp_path / "bundle", library, small_bundle.manifest())

    def full_disk(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full_disk)
    with pytest.raises(BundleError, match=r"cannot be written: .*No space left"):
        write(target, library, small_bundle.manifest())
    verify(target)
    assert hidden(tmp_path) == []


def test_missing_library_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot be written: .*nowhere\.so"):
        write(tmp_path / "bundle", tmp_path / "nowhere.so", small_bundle.manifest())
    assert not (tmp_path / "bundle").exists()


def write_and_die(moment: str, target: Path, library: Path) -> None:
    """Forks a writer that is killed at the moment; the fork spares it the import of TVM."""
    child = os.fork()
    if child == 0:
        try:
            die_at(moment)
            write(target, library, small_bundle.manifest())
        finally:
            os._exit(1)  # not reached: the writer has killed itself
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


def die_at(moment: str) -> None:
    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if moment == "while writing":
        write_file, written = bundle._write_file, []

        def write_two(path: Path, source: Path | bytes) -> None:
            if len(written) == 2:
                die()
            written.append(path)
            write_file(path, source)

        bundle._write_file = write_two
    elif moment == "before the move":
        bundle._move_into_place = die
    else:
        bundle.shutil.rmtree = die  # the move is done, and what it replaced is to be removed


@pytest.mark.parametrize("replacing", [False, True])
@pytest.mark.parametrize("moment", ["while writing", "before the move", "after the move"])
def test_killed_writer_leaves_no_half_bundle(
    tmp_path: Path, library: Path, moment: str, replacing: bool
) -> None:
    target = tmp_path / "out" / "bundle"
    if replacing:
        write(target, library, small_bundle.manifest(), {"old.txt": b"old"})
    library.write_bytes(b"library 2")
    write_and_die(moment, target, library)
    if moment == "after the move":
        verify(target)
        assert not (target / "old.txt").exists()
    elif replacing:
        verify(target)
        assert (target / "old.txt").exists()
    else:
        assert not target.exists()
    assert bool(hidden(target.parent)) == (replacing or moment != "after the move")

    write(target, library, small_bundle.manifest())
    verify(target)
    assert (target / "model.so").read_bytes() == b"library 2"
    assert hidden(target.parent) == []


def test_folder_of_a_writer_at_work_is_left_alone(tmp_path: Path, library: Path) -> None:
    working = tmp_path / ".bundle.partial-0123"
    working.mkdir()
    descriptor = os.open(working, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        write(tmp_path / "bundle", library, small_bundle.manifest())
        assert working.exists()
    finally:
        os.close(descriptor)
    write(tmp_path / "bundle", library, small_bundle.manifest())
    assert not working.exists()
