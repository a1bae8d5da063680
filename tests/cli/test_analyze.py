"""``qcompile analyze`` prints a table or JSON, and writes a page."""

from __future__ import annotations

import json
from pathlib import Path

from command_line import Command, Compiled


def test_analyze(qcompile: Command, compiled: Compiled, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = qcompile(
        "analyze",
        compiled.model,
        "--calibration",
        compiled.calibration,
        "--json",
        "--html",
        page,
        "--no-progress",
    )
    assert result.status == 0, result.err
    layers = json.loads(result.out)["errors"]["layers"]
    assert [layer["name"] for layer in layers] == ["input input", "0", "2", "4", "6"]
    assert page.read_text().startswith("<!DOCTYPE html>")
    table = qcompile("analyze", compiled.model, "--calibration", compiled.calibration, "--limit", "2")
    assert table.status == 0
    assert "worst first" in table.out


def test_analyze_says_what_it_cannot_take(qcompile: Command, compiled: Compiled) -> None:
    result = qcompile("analyze", compiled.model, "--calibration", "missing.npz")
    assert (result.status, result.out) == (1, "")
    assert "missing.npz does not exist" in result.err


def test_compile_says_what_its_effort_gained(qcompile: Command, compiled: Compiled, tmp_path: Path) -> None:
    result = qcompile(
        "compile", compiled.model, "--calibration", compiled.calibration, "--output", tmp_path / "bundle",
        "--target", "x86-avx2", "--effort", "balanced", "--no-progress",
    )  # fmt: skip
    assert result.status == 0, result.err
    assert "bias_correction empirical" in result.out
    shown = qcompile("inspect", tmp_path / "bundle", "--json")
    tried = json.loads(shown.out)["optimizations"]
    assert [entry["name"] for entry in tried] == ["calibration_method auto", "bias_correction empirical"]
    assert "calibration_method auto" in qcompile("inspect", tmp_path / "bundle").out
