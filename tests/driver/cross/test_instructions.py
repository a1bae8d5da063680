"""The emulator's log of blocks, read as it is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from qcompiler.driver.cross import instructions
from qcompiler.errors import BuildError

LOG = b"""----------------
IN: start
0x4000001000:  d503201f  nop
0x4000001004:  97ffeeac  bl       #0x4000002000

Trace 0: 0x7f0000000100 [0000000000001001/0000004000001000/00000001/00000200] start
----------------
IN:
0x4000002000:  910003e0  mov      x0, sp

Trace 0: 0x7f0000000200 [0000000000001001/0000004000002000/00000001/00000200]
Trace 0: 0x7f0000000200 [0000000000001001/0000004000002000/00000001/00000200]
Stopped execution of TB chain before 0x7f0000000200 [0000004000002000]
Trace 0: 0x7f0000000100 [0000000000001001/0000004000001000/00000001/00000200] start
"""


@pytest.mark.parametrize("piece", [7, 64, 10_000])
def test_entries_and_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(instructions, "_READ", piece)
    pipe = tmp_path / "log"
    os.mkfifo(pipe)
    reader = instructions._Reader(pipe)
    reader.start()
    pipe.write_bytes(LOG)
    reader.end()
    assert reader.entries == {0x4000001000: 2, 0x4000002000: 1}
    assert reader.sizes == {0x4000001000: 2, 0x4000002000: 1}


def test_a_log_that_nobody_writes_ends(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reader = instructions._Reader(tmp_path / "log")
    reader.start()
    reader.end()
    assert reader.entries == {}


def test_place_of_a_library() -> None:
    maps = (
        "4000000000-4000001000 r--p 00000000 08:01 7 /a/other.so\n"
        "4000400000-4000410000 r--p 00000000 08:01 9 /a/model.so\n"
        "4000410000-4000480000 r-xp 00010000 08:01 9 /a/model.so\n"
    )
    assert instructions._extent(maps, Path("/a/model.so")) == (0x4000400000, 0x4000480000)
    with pytest.raises(BuildError, match=r"has not loaded /b/absent\.so"):
        instructions._extent(maps, Path("/b/absent.so"))
