"""Tables say who is how fast, and name who is not there."""

from __future__ import annotations

from typing import Any

from tables import best_ratio, markdown


def record(
    engine: str, model: str, median: float | None, ratio: float | None, **fields: Any
) -> dict[str, Any]:
    return {
        "engine": engine, "model": model, "batch": 1, "threads": 1, "median": median, "ratio": ratio, "version": "1",
        "dtype": "int8", "absent": None, "compile_seconds": 2.0, "import_seconds": 0.1, "session_seconds": 0.2,
        "first_seconds": 0.3, "peak_bytes": 5e7, "imported_bytes": 4e7, "artifact_bytes": 1e7, "sqnr_db": 30.0,
        "settings": {"how": "well"}, "busy": False, "others": 0.0, **fields,
    }  # fmt: skip


RECORDS = [
    record("peer", "resnet18", 0.02, 2.0),
    record("qcompiler", "resnet18", 0.01, 1.0),
    record("qcompiler", "mobilenet_v2", 0.001, 1.0),
    record("peer", "mobilenet_v2", 0.008, 8.0),
    record("slow", "mobilenet_v2", 0.009, 9.0),
    record("slow", "resnet18", None, None, absent="does not | like it"),
]


def test_latency_has_ratios_and_geometric_means() -> None:
    lines = markdown(RECORDS).splitlines()
    assert "| network | qcompiler 1 (int8) | peer 1 (int8) | slow 1 (int8) | best peer |" in lines
    assert "| ResNet-18 | **10.0** | 20.0 (2.00) | fails | **2.00** |" in lines
    assert "| MobileNetV2 | **1.00** | 8.00 (8.00) | 9.00 (9.00) | **8.00** |" in lines
    assert "| geometric mean |  | 4.00 | 9.00 | **4.00** |" in lines


def test_costs_have_a_row_for_each_engine_that_ran() -> None:
    row = "| ResNet-18 | **qcompiler** | 2.0 s | 100 ms | 500 ms | 50.0 MB | 40.0 MB | 10.0 MB | 30.0 dB |"
    assert row in markdown(RECORDS).splitlines()
    assert markdown(RECORDS).count("2.0 s") == 5


def test_absent_engines_have_a_row_with_the_reason() -> None:
    assert "| slow | fails: does not \\| like it | ResNet-18 batch 1 |" in markdown(RECORDS).splitlines()


def test_disturbed_cells_are_named() -> None:
    disturbed = [record("qcompiler", "resnet18", 0.01, 1.0, busy=True, others=0.5, spread=1.1)]
    assert (
        "to be measured again:** ResNet-18 batch 1, 1 thread (0.50 cores, 1.10 times the fastest round)."
        in markdown(disturbed)
    )
    assert "measured again" not in markdown(RECORDS)


def test_best_peer_is_the_fastest() -> None:
    assert best_ratio(RECORDS) == 2.0
    assert best_ratio(RECORDS[1:2]) is None
