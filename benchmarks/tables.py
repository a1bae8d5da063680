"""Results as Markdown tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence

from store import Record

OWN = "qcompiler"

LABELS = {
    "resnet18": "ResNet-18",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "mobilenet_v3_large": "MobileNetV3-large",
    "efficientnet_b0": "EfficientNet-B0",
    "densenet121": "DenseNet-121",
    "squeezenet1_1": "SqueezeNet 1.1",
    "shufflenet_v2_x1_0": "ShuffleNetV2 ×1.0",
    "regnet_y_400mf": "RegNetY-400MF",
    "googlenet": "GoogLeNet",
}


def label(model: str) -> str:
    """A network's name as its authors write it."""
    return LABELS.get(model, model)


def engines(records: Iterable[Record]) -> list[str]:
    """Engines by their first record, ours first."""
    names = list(dict.fromkeys(r["engine"] for r in records))
    return sorted(names, key=lambda name: name != OWN)


def models(records: Iterable[Record]) -> list[str]:
    """Networks in the order of ``LABELS``, the others behind."""
    names = list(dict.fromkeys(r["model"] for r in records))
    order = list(LABELS)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def best_ratio(records: Iterable[Record]) -> float | None:
    """Of the peers in some records: the fastest one's time as a multiple of ours; None without a peer's time."""
    ratios = [r["ratio"] for r in records if r["engine"] != OWN and r["ratio"] is not None]
    return min(ratios) if ratios else None


def markdown(records: Sequence[Record]) -> str:
    """All tables."""
    cells = sorted({(r["batch"], r["threads"]) for r in records})
    parts = [_disturbed(records)]
    parts += [_latency([r for r in records if (r["batch"], r["threads"]) == c], *c) for c in cells]
    for batch in sorted({r["batch"] for r in records}):
        parts.append(_costs([r for r in records if r["batch"] == batch], batch))
    parts += [_absent(records), _settings(records)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _disturbed(records: Sequence[Record]) -> str:
    """Cells that have to be measured again."""
    places = dict.fromkeys(
        f"{label(r['model'])} batch {r['batch']}, {_threads(r['threads'])} ({r['others']:.2f} cores, {r['spread']:.2f} times the fastest round)"
        for r in records
        if r["busy"]
    )
    return f"**The machine was not idle, to be measured again:** {'; '.join(places)}." if places else ""


def _latency(records: Sequence[Record], batch: int, threads: int) -> str:
    names = engines(r for r in records if r["median"] is not None or r["engine"] == OWN)
    rows = []
    ratios: dict[str, list[float]] = {name: [] for name in [*names, "best"]}
    for model in models(records):
        found = {r["engine"]: r for r in records if r["model"] == model}
        row = [label(model)]
        for name in names:
            record = found.get(name)
            if record is None:
                row.append("not measured")
            elif record["median"] is None:
                row.append("fails")
            elif name == OWN:
                row.append(f"**{_milliseconds(record['median'])}**")
            elif record["ratio"] is None:
                row.append(_milliseconds(record["median"]))
            else:
                ratios[name].append(record["ratio"])
                row.append(f"{_milliseconds(record['median'])} ({record['ratio']:.2f})")
        best = best_ratio(found.values())
        if best is not None:
            ratios["best"].append(best)
        rows.append([*row, "-" if best is None else f"**{best:.2f}**"])
    means = [_mean(ratios[name]) for name in names if name != OWN]
    rows.append(["geometric mean", "", *means, f"**{_mean(ratios['best'])}**"])
    heads = ["network", *(_versioned(name, records) for name in names), "best peer"]
    return (
        f"### Batch {batch}, {_threads(threads)}\n\n"
        "Milliseconds a run, and in brackets as a multiple of qcompiler's time.\n\n" + _table(heads, rows)
    )


def _costs(records: Sequence[Record], batch: int) -> str:
    """Compile time, start, memory and size; at the smallest number of threads that was measured."""
    threads = min(r["threads"] for r in records)
    rows = []
    for model in models(records):
        for name in engines(records):
            for r in records:
                if (r["model"], r["engine"], r["threads"]) != (model, name, threads) or r["median"] is None:
                    continue
                rows.append(
                    [
                        label(model),
                        f"**{name}**" if name == OWN else name,
                        _cell(r["compile_seconds"], lambda s: f"{s:.1f} s"),
                        _cell(r["import_seconds"], _whole_milliseconds),
                        _cell(_load(r), _whole_milliseconds),
                        _cell(r["peak_bytes"], _megabytes),
                        _cell(r["imported_bytes"], _megabytes),
                        _cell(r["artifact_bytes"], _megabytes),
                        _cell(r["sqnr_db"], lambda d: f"{d:.1f} dB"),
                    ]
                )
    heads = [
        "network", "engine", "compile", "import", "load to first output", "peak memory", "of it after the import",
        "artifact", "SQNR",
    ]  # fmt: skip
    return (
        f"### Compile time, start, memory, size: batch {batch}, {_threads(threads)}\n\n"
        "Compile: from the float network to the artifact, quantization included. Import: the engine's package. Peak "
        "memory: VmHWM of the process after all runs; Python, NumPy, the inputs and the imported engine are in it. Artifact: what is shipped for the network, the engine aside. SQNR: "
        "of the output against the float network's.\n\n" + _table(heads, rows)
    )


def _absent(records: Sequence[Record]) -> str:
    """Engines that did not run, each reason once."""
    places: dict[tuple[str, str], list[str]] = {}
    for r in records:
        if r["absent"] is not None:
            place = f"{label(r['model'])} batch {r['batch']}"
            found = places.setdefault((r["engine"], r["absent"]), [])
            if place not in found:
                found.append(place)
    if not places:
        return ""
    rows = [[engine, f"fails: {_escaped(reason)}", ", ".join(w)] for (engine, reason), w in places.items()]
    return "### Engines that did not run\n\n" + _table(["engine", "reason", "where"], rows)


def _settings(records: Sequence[Record]) -> str:
    latest = {r["engine"]: r for r in records}
    rows = [
        [_versioned(name, records), "; ".join(f"{key}: {value}" for key, value in latest[name]["settings"].items())]
        for name in engines(records)
    ]  # fmt: skip
    return "### Settings\n\n" + _table(["engine", "settings"], rows)


def _versioned(name: str, records: Iterable[Record]) -> str:
    record = next(r for r in records if r["engine"] == name)
    return f"{name} {record['version']} ({record['dtype']})".replace("  ", " ")


def _load(record: Record) -> float | None:
    if record["session_seconds"] is None or record["first_seconds"] is None:
        return None
    return float(record["session_seconds"] + record["first_seconds"])


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _mean(ratios: Sequence[float]) -> str:
    return f"{statistics.geometric_mean(ratios):.2f}" if ratios else "-"


def _milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    digits = max(0, 2 - math.floor(math.log10(value)))
    return f"{value:.{min(3, digits)}f}"


def _whole_milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.0f} ms"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"


def _cell(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)


def _escaped(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
