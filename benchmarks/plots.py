"""Results as plots: bars against the peers, and the layers of a network under the chip's roofline."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import tables
from store import Record, Store

matplotlib.use("svg")
from matplotlib import pyplot
from matplotlib.patches import Patch

OWN_COLOR = "#c0392b"
PEER_COLORS = ("#2c6fbb", "#7fb3d5", "#7d8b97", "#b9a44c", "#6b8e5a", "#9b7bb5", "#444444")
"""Ours stands out; the peers are told apart, without red and green beside each other."""


def write(store: Store, folder: Path) -> list[Path]:
    """Writes all plots as SVG and PNG; returns the PNG files."""
    written = []
    for batch in sorted({r["batch"] for r in store.records}):
        chosen = [r for r in store.records if r["batch"] == batch and r["median"] is not None]
        if chosen:
            written.append(_save(bars(chosen, batch), folder / f"bars-batch{batch}"))
    for name, measured in store.rooflines.items():
        written.append(_save(roofline(name.rsplit("-", 1)[0], measured), folder / f"roofline-{name}"))
    return written


def bars(records: Sequence[Record], batch: int) -> Any:
    """How many times as long as ours each peer takes, by network; a panel a number of threads."""
    counts = sorted({r["threads"] for r in records})
    networks = tables.models(records)
    names = tables.engines(records)
    figure, panels = pyplot.subplots(
        len(counts), 1, figsize=(9, 0.8 + 2.7 * len(counts)), sharex=True, squeeze=False, layout="constrained"
    )
    peers = [name for name in names if name != tables.OWN]
    colors = {tables.OWN: OWN_COLOR, **dict(zip(peers, itertools.cycle(PEER_COLORS), strict=False))}
    width = 0.8 / len(colors)
    for panel, threads in zip(panels[:, 0], counts, strict=True):
        for index, (name, color) in enumerate(colors.items()):
            for position, network in enumerate(networks):
                record = _find(records, network, name, threads)
                place = position + (index - (len(colors) - 1) / 2) * width
                if record is None or record["ratio"] is None:
                    panel.text(place, 0.05, "–", ha="center", fontsize=8)
                    continue
                panel.bar(place, record["ratio"], 0.92 * width, color=color)
                shown = f"{record['ratio']:.2f}" if name != tables.OWN else f"{record['median'] * 1e3:.1f} ms"
                panel.annotate(
                    shown, (place, record["ratio"]), (0, 2), textcoords="offset points", ha="center",
                    va="bottom", fontsize=7, rotation=90 if len(colors) > 3 else 0,
                )  # fmt: skip
        panel.axhline(1, color=OWN_COLOR, linewidth=0.8)
        panel.set_ylabel("time / qcompiler's")
        panel.set_title(f"batch {batch}, {threads} thread{'s' * (threads > 1)}", fontsize=10, loc="left")
        panel.margins(y=0.18)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1, 0].set_xticks(range(len(networks)), [tables.label(n) for n in networks])
    handles = [Patch(color=color, label=name) for name, color in colors.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=4, frameon=False)
    return figure


def _find(records: Sequence[Record], network: str, name: str, threads: int) -> Record | None:
    wanted = (network, name, threads)
    return next((r for r in records if (r["model"], r["engine"], r["threads"]) == wanted), None)


def roofline(network: str, measured: Mapping[str, Any]) -> Any:
    """The layers of a run under the peak of the arithmetic and of main memory; a marker's area is its share of the time."""
    figure, panel = pyplot.subplots(figsize=(8, 5), layout="constrained")
    layers = measured["layers"]
    peak, bandwidth = measured["peak"], measured["bandwidth"]
    intensity = np.array([layer["macs"] / layer["bytes"] for layer in layers])
    speed = np.array([layer["macs"] / layer["seconds"] for layer in layers]) / 1e9
    share = np.array([layer["seconds"] for layer in layers])
    area = 900 * share / share.sum() + 12
    kinds = [layer["operator"] for layer in layers]
    for index, kind in enumerate(dict.fromkeys(kinds)):
        mask = np.array([k == kind for k in kinds])
        color = OWN_COLOR if index == 0 else PEER_COLORS[index - 1]
        panel.scatter(
            intensity[mask], speed[mask], area[mask], color=color, alpha=0.55, edgecolor="black", linewidth=0.5,
            label=f"{kind} ({mask.sum()} layers)",
        )  # fmt: skip
    left, right = 0.6 * min(intensity.min(), peak / bandwidth), 2 * max(intensity.max(), peak / bandwidth)
    x = np.geomspace(left, right, 200)
    panel.plot(x, np.minimum(peak, bandwidth * x) / 1e9, color="black", linewidth=1.2)
    panel.annotate(
        f"{peak / 1e9:.0f} GMAC/s",
        (right, peak / 1e9),
        (-2, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    ridge = np.sqrt(left * peak / bandwidth)
    panel.annotate(
        f"main memory, {bandwidth / 1e9:.0f} GB/s", (ridge, bandwidth * ridge / 1e9), (6, -8),
        textcoords="offset points", fontsize=9,
    )  # fmt: skip
    for place, index in enumerate(
        np.argsort(speed)[:3]
    ):  # the slowest, above and below their markers in turn
        panel.annotate(
            layers[index]["name"], (intensity[index], speed[index]), (8, 7 if place % 2 else -11),
            textcoords="offset points", fontsize=7,
        )  # fmt: skip
    panel.set(xscale="log", yscale="log", xlim=(left, right))
    panel.set_ylim(0.5 * min(speed.min(), bandwidth * left / 1e9), 2 * peak / 1e9)
    panel.set_xlabel("arithmetic intensity: MAC / byte of inputs, weights and output")
    panel.set_ylabel("GMAC/s")
    total = sum(layer["macs"] for layer in layers) / share.sum() / 1e9
    panel.set_title(
        f"{tables.label(network)}, batch 1, {tables._threads(measured['threads'])}: layers together "
        f"{total:.0f} GMAC/s, {1e11 * total / peak:.0f} % of the peak\n(peak: {measured['peak_source']})",
        fontsize=9, loc="left",
    )  # fmt: skip
    panel.grid(True, which="both", linewidth=0.3, alpha=0.5)
    panel.legend(loc="lower right", fontsize=8)
    return figure


def _save(figure: Any, stem: Path) -> Path:
    for suffix in (".svg", ".png"):
        figure.savefig(
            stem.with_name(stem.name + suffix), dpi=130, metadata={"Date": None} if suffix == ".svg" else None
        )
    pyplot.close(figure)
    return stem.with_name(stem.name + ".png")
