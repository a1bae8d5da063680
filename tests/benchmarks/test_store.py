"""A run goes on where the last one was cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from store import Store


def record(engine: str, model: str = "m", threads: int = 1, **fields: Any) -> dict[str, Any]:
    common = {"batch": 1, "median": 1.0, "stamp": "s", "busy": False}
    return {"engine": engine, "model": model, "threads": threads, **common, **fields}


def test_what_is_there_is_not_missing(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "results.json"
    store = Store.open(path)
    store.add([record("a"), record("b", median=None), record("c", busy=True)])
    store = Store.open(path)
    assert store.missing(["a", "b", "c", "d"], ("m", 1, 1), "s") == ["b", "c", "d"]
    assert store.missing(["a"], ("m", 1, 2), "s") == ["a"]
    assert store.missing(["a"], ("m", 1, 1), "another compiler") == ["a"]
    assert list(path.parent.iterdir()) == [path], "nothing but the file is left"


def test_new_records_replace_those_of_their_cell(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "results.json")
    store.add([record("a", median=1.0), record("a", threads=2)])
    store.add([record("a", median=3.0)])
    assert [(r["threads"], r["median"]) for r in store.records] == [(2, 1.0), (1, 3.0)]


def test_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"holds no results of format 1; give another --output"):
        Store.open(path)
