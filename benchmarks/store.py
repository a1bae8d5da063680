"""The file of a benchmark's results: one record for each engine, network, batch and number of threads.

It is written anew, atomically, whenever a cell (network, batch, threads) has been measured, so that a run that is cut
loses one cell at most, and the next run goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1

Record = dict[str, Any]
"""The fields of :class:`qcompiler.driver.bench.Timing`, with those of its cell and of the measurement.

``model``, ``batch``, ``threads``: the cell. ``engine``: its engine. ``own_median``: seconds of our own engine in the same
rounds, which ``ratio`` refers to. ``stamp``: hash of our compiler's files. ``rounds``, ``starts``, ``cpu``, ``date``: how,
where and when. ``others``, ``spread``, ``busy``: how idle the machine
was, as in :class:`qcompiler.driver.bench.BenchResult`.
"""


@dataclass
class Store:
    """Results in memory, and their file.

    Attributes:
        path: the JSON file.
        records: what was measured.
        rooflines: for each network the layers of a run; see ``roofline.py``.
    """

    path: Path
    records: list[Record] = field(default_factory=list)
    rooflines: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Store:
        """What the file holds; empty if there is none.

        Raises:
            ValueError: it is of another format.
        """
        if not path.exists():
            return cls(path)
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            raise ValueError(
                f"{path} holds no results of format {FORMAT}; give another --output, or delete it"
            )
        return cls(path, list(content["records"]), dict(content["rooflines"]))

    def missing(self, engines: Iterable[str], cell: tuple[str, int, int], stamp: str) -> list[str]:
        """Engines without a time in a cell, with a disturbed one, or one beside another state of our compiler."""
        done = {
            record["engine"]
            for record in self.records
            if cell_of(record) == cell
            and record["stamp"] == stamp
            and record["median"] is not None
            and not record["busy"]
        }
        return [engine for engine in engines if engine not in done]

    def add(self, records: Iterable[Record]) -> None:
        """Puts records in the place of those of the same engine and cell, and writes the file."""
        new = list(records)
        replaced = {(r["engine"], cell_of(r)) for r in new}
        self.records = [r for r in self.records if (r["engine"], cell_of(r)) not in replaced] + new
        self.write()

    def write(self) -> None:
        """Writes the file; a reader sees the old or the new one."""
        content = {"format": FORMAT, "records": self.records, "rooflines": self.rooflines}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(f"{self.path.name}.new")
        fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(fresh, self.path)


def cell_of(record: Record) -> tuple[str, int, int]:
    """Network, batch and threads of a record."""
    return record["model"], record["batch"], record["threads"]
