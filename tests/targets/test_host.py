"""A machine's description is read from files; what is missing is unknown, not guessed."""

from __future__ import annotations

from pathlib import Path

from qcompiler.targets.host import read_host


def cache(folder: Path, index: int, level: str, kind: str, size: str) -> None:
    entry = folder / f"index{index}"
    entry.mkdir()
    for name, text in (("level", level), ("type", kind), ("size", size)):
        (entry / name).write_text(text + "\n")


def test_flags_are_those_of_every_core(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: avx2 avx512f fma\nvmx flags\t: vnmi\n\nflags\t\t: avx2 fma\n")
    assert read_host(cpuinfo, tmp_path).features == {"avx2", "fma"}


def test_data_caches_are_found_by_level(tmp_path: Path) -> None:
    cache(tmp_path, 0, "1", "Instruction", "64K")
    cache(tmp_path, 1, "1", "Data", "48K")
    cache(tmp_path, 2, "2", "Unified", "2M")
    found = read_host(tmp_path / "none", tmp_path)
    assert (found.l1_bytes, found.l2_bytes) == (48 << 10, 2 << 20)


def test_missing_files_are_no_knowledge(tmp_path: Path) -> None:
    (tmp_path / "index0").mkdir()
    cache(tmp_path, 1, "2", "Unified", "0K")
    found = read_host(tmp_path / "none", tmp_path)
    assert (found.features, found.l1_bytes, found.l2_bytes) == (frozenset(), None, None)
