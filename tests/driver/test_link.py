"""Objects are linked without a system compiler, and the linker's complaints reach the user."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import small_bundle
from elftools.elf.elffile import ELFFile

from qcompiler.driver.link import link_shared
from qcompiler.errors import BuildError


def test_no_system_compiler_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert small_bundle.library(tmp_path / "model.so").is_file()


def test_symbols_stay_and_build_paths_go(tmp_path: Path) -> None:
    path = small_bundle.library(tmp_path / "model.so")
    with path.open("rb") as file:
        elf = ELFFile(file)
        names = {section.name for section in elf.iter_sections()}
        functions = {symbol.name for symbol in elf.get_section_by_name(".symtab").iter_symbols()}
    assert not {name for name in names if name.startswith(".debug")}
    assert "__tvm_ffi_matmul" in functions
    assert "matmul_compute_" in functions
    assert b"/tmp" not in path.read_bytes()


def test_linkers_words_are_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "bad.o").write_bytes(b"no object")
    with pytest.raises(BuildError, match=r"linking .*x\.so failed with exit status 1: .*bad\.o"):
        link_shared(str(tmp_path / "x.so"), [str(tmp_path / "bad.o")])
    with pytest.raises(BuildError, match="unknown argument '--nonsense'"):
        link_shared(str(tmp_path / "x.so"), [], ["--nonsense"])


def test_missing_linker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(BuildError, match="pip install ziglang"):
        link_shared(str(tmp_path / "x.so"), [])
