"""Plots show every engine of every network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from store import Store

pytest.importorskip("matplotlib", reason="pip install 'qcompiler[plots]'")

import plots


def record(engine: str, model: str, threads: int, ratio: float | None) -> dict[str, Any]:
    cell = {"batch": 1, "model": model, "threads": threads, "engine": engine}
    return {**cell, "median": None if ratio is None else 1e-3, "ratio": ratio}


RECORDS = [
    record(engine, model, threads, ratio)
    for model in ("resnet18", "mobilenet_v2")
    for threads in (1, 2)
    for engine, ratio in (("qcompiler", 1.0), ("peer", 1.5), ("absent", None))
]

LAYERS = [
    {"name": f"layer{k}", "operator": "conv2d" if k else "dense", "macs": 10**8, "seconds": 1e-3 * k + 1e-4, "bytes": 10**6}
    for k in range(4)
]  # fmt: skip


def test_files_are_written(tmp_path: Path) -> None:
    roofline = {"threads": 1, "peak": 2e11, "peak_source": "measured", "bandwidth": 2e10, "layers": LAYERS}
    store = Store(tmp_path / "results.json", RECORDS, {"resnet18-1": roofline})
    written = plots.write(store, tmp_path)
    assert [path.name for path in written] == ["bars-batch1.png", "roofline-resnet18-1.png"]
    assert all(path.stat().st_size > 10_000 for path in written)
    assert all(path.with_suffix(".svg").exists() for path in written)


def test_bars_have_the_heights_of_the_ratios() -> None:
    figure = plots.bars([r for r in RECORDS if r["median"] is not None], 1)
    for panel in figure.axes:
        assert sorted(bar.get_height() for bar in panel.patches) == [1.0, 1.0, 1.5, 1.5]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["qcompiler", "peer"]
