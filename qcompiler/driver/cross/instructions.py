"""Instructions that a run executes, counted exactly by the emulator.

QEMU translates code in blocks that only their last instruction leaves. Asked with ``-d in_asm,exec,nochain``, it writes
down the instructions of every block when it translates it, and each entry into a block. The sum of entries times
instructions is the number of instructions that were executed. The log goes through a pipe: it has a line an entry.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Thread
from typing import BinaryIO

from qcompiler.driver.cross import emulator
from qcompiler.driver.cross.emulator import Array
from qcompiler.errors import BuildError

_ENTRY = re.compile(rb"^Trace \d+: \S+ \[[0-9a-f]+/([0-9a-f]+)/", re.MULTILINE)
_NOT_ENTERED = re.compile(rb"^Stopped execution of TB chain before \S+ \[([0-9a-f]+)\]", re.MULTILINE)
_BLOCK = re.compile(rb"^IN:.*\n0x([0-9a-f]+):(.*\n(?:0x[0-9a-f]+:.*\n)*)", re.MULTILINE)
_READ = 1 << 22
"""Bytes of the log that are read at once."""


def count(
    library: Path, inputs: Sequence[Array], constants: Sequence[Array], *, family: str, cpu: str
) -> dict[int, int]:
    """Instructions that one run on one thread executes in ``library``, by the addresses of the blocks they are in.

    Args:
        library: the model's shared library.
        inputs: arrays of the inputs.
        constants: the arguments that follow the inputs.
        family: family of the target that it was compiled for.
        cpu: QEMU's name of the processor.

    Raises:
        BuildError: there is no emulator, or the run ended with an error.
    """
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        pipe, maps = Path(folder) / "log", Path(folder) / "maps"
        os.mkfifo(pipe)
        reader = _Reader(pipe)
        reader.start()
        try:
            emulator.run(
                library, [inputs], constants, family=family, cpu=cpu, maps=maps,
                options=("-d", "in_asm,exec,nochain", "-D", str(pipe)),
            )  # fmt: skip
        finally:
            reader.end()
        first, last = _extent(maps.read_text(encoding="utf-8"), library)
    return {
        address - first: entries * reader.sizes[address]
        for address, entries in reader.entries.items()
        if first <= address < last
    }


class _Reader(Thread):
    """Reads the log as it is written.

    Attributes:
        entries: entries into blocks, by address.
        sizes: instructions of blocks, by address.
    """

    def __init__(self, pipe: Path) -> None:
        super().__init__(daemon=True)
        self._pipe = pipe
        self._opened = Event()
        self._names: Counter[bytes] = Counter()
        self.sizes: dict[int, int] = {}
        self.entries: dict[int, int] = {}

    def run(self) -> None:
        with self._pipe.open("rb") as log:
            self._opened.set()
            self._read(log)
        for name, entries in self._names.items():
            address = int(name, 16)
            self.entries[address] = self.entries.get(address, 0) + entries

    def _read(self, log: BinaryIO) -> None:
        waiting = b""
        while data := log.read(_READ):
            waiting += data
            # A block comes before the first entry into it.
            whole = waiting.rfind(b"\nTrace ") + 1
            self._take(waiting[:whole])
            waiting = waiting[whole:]
        self._take(waiting)

    def _take(self, text: bytes) -> None:
        self._names.update(_ENTRY.findall(text))
        self._names.subtract(_NOT_ENTERED.findall(text))
        for block in _BLOCK.finditer(text):
            self.sizes[int(block[1], 16)] = block[2].count(b"\n")

    def end(self) -> None:
        """Waits for the end of the log; of one that no emulator ever opened, too."""
        writer = os.open(
            self._pipe, os.O_RDWR
        )  # a reader waits for somebody to write; this does not wait itself
        self._opened.wait()
        os.close(writer)
        self.join()


def _extent(maps: str, library: Path) -> tuple[int, int]:
    """Where ``library`` begins and ends in a process of the memory map ``maps``."""
    own = [line for line in maps.splitlines() if line.rstrip().endswith(f"/{library.name}")]
    spans = [tuple(int(end, 16) for end in line.split()[0].split("-")) for line in own]
    if not spans:
        raise BuildError(f"the emulated process has not loaded {library}")
    return min(start for start, _ in spans), max(end for _, end in spans)
