"""Units, tables and JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from qcompiler import report


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (report.percent(0.8135), "81.35 %"),
        (report.percent(None), "-"),
        (report.milliseconds(0.00583), "5.83 ms"),
        (report.milliseconds(0.0221), "22.1 ms"),
        (report.milliseconds(1.5), "1500 ms"),
        (report.milliseconds(0.0000123), "0.0123 ms"),
        (report.milliseconds(0.0), "0.00 ms"),
        (report.gmacs(201.44e9), "201.4 GMAC/s"),
        (report.decibels(float("inf")), "equal"),
        (report.decibels(31.04), "31.0 dB"),
        (report.size(999), "999 B"),
        (report.size(4_210_000), "4.2 MB"),
        (report.size(12_000_000_000_000), "12000.0 GB"),
    ],
)
def test_units(text: str, expected: str) -> None:
    assert text == expected


@dataclass(frozen=True)
class Result:
    path: Path
    values: tuple[float, ...]
    names: frozenset[str]


def test_json_of_a_result() -> None:
    text = report.to_json({"a": Result(Path("x"), (1.5, float("inf"), float("nan")), frozenset({"c", "b"}))})
    assert json.loads(text) == {"a": {"path": "x", "values": [1.5, None, None], "names": ["b", "c"]}}


def test_json_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(TypeError):
        report.to_json(object())


def test_tables_show_brackets_and_do_not_fold(capsys: pytest.CaptureFixture[str]) -> None:
    wide = "x" * 120
    report.show(
        report.table("Layers", ["name", ">time"], [("conv[bold]", "1 ms"), (wide, "22 ms")]),
        report.facts("Bundle", {"shape": "[1, 3]"}),
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].strip() == "Layers"
    assert lines[2].startswith("conv[bold]")
    assert lines[2].endswith(" 1 ms")
    assert wide in lines[3]
    assert "[1, 3]" in lines[-1]


def test_progress_writes_to_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for enabled in (True, False):
        with report.progress("work", 2, enabled) as done:
            done(2)
    assert capsys.readouterr().out == ""
