"""Kernel calls are matched with layers, and sums and shares are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qcompiler.driver.profile import _dense, _main_instruction, _row, _sum, attribute, profile
from qcompiler.errors import ConfigError
from qcompiler.runtime import LayerRecord


def layer(name: str, function: str, macs: int = 0, instruction: str | None = None) -> LayerRecord:
    return LayerRecord(
        name,
        "conv2d",
        "uint8",
        (1,),
        macs=macs,
        instruction=instruction,
        instruction_count=1,
        function=function,
    )


def test_layers_that_share_a_kernel_take_its_calls_in_turn() -> None:
    layers = [layer("a", "k1"), layer("b", "k2"), layer("c", "k1")]
    calls = [("k1", 1.0), ("other", 9.0), ("k2", 2.0), ("k1", 3.0), ("k1", 4.0)]
    found = [(call, None if match is None else match.name) for call, match in attribute(calls, layers)]
    assert found == [
        (("k1", 1.0), "a"),
        (("other", 9.0), None),
        (("k2", 2.0), "b"),
        (("k1", 3.0), "c"),
        (("k1", 4.0), None),
    ]


def test_share_of_the_peak_is_of_layers_with_the_instruction() -> None:
    fast = _row(("k", 0.5), layer("a", "k", macs=100, instruction="vpdpbusd"), {"vpdpbusd": 400.0})
    assert (fast.macs_per_second, fast.peak_share) == (200.0, 0.5)
    slow = _row(("k", 0.5), layer("a", "k", macs=100), {})
    assert (slow.macs_per_second, slow.peak_share) == (200.0, None)
    total = _sum("total", [fast, slow], 400.0)
    assert (total.seconds, total.macs, total.macs_per_second) == (1.0, 200, 200.0)


def test_the_peak_is_that_of_the_instruction_that_does_most() -> None:
    peaks = {"vpdpbusd": 400.0, "vfmadd231ps": 100.0}
    rows = [
        _row(("k", 1.0), layer("a", "k", macs=50, instruction="vpdpbusd"), peaks),
        _row(("k", 2.0), layer("b", "k", macs=100, instruction="vfmadd231ps"), peaks),
    ]
    rows = [replace(row, operator="float_conv2d") for row in rows]
    assert _main_instruction(rows) == "vfmadd231ps"
    summed = _dense(rows, "vfmadd231ps", peaks["vfmadd231ps"])
    assert (summed.name, summed.macs, summed.peak_share) == ("dense, vfmadd231ps", 100, 0.5)


def test_bundle_is_profiled(small_bundle_path: Path) -> None:
    result = profile(small_bundle_path, threads=1, repeat=2, peak=1e9)
    names = [row.name for row in result.rows]
    assert "fc" in names
    assert names.count("fc") == 1
    assert result.dense is None, "the small bundle computes in float"
    assert result.total.macs == 4 * 32 * 64
    assert (result.peak, result.peak_source, result.threads) == (1e9, "given", 1)


def test_impossible_peak_is_refused(small_bundle_path: Path) -> None:
    with pytest.raises(ConfigError, match="peak is -1"):
        profile(small_bundle_path, peak=-1.0)


def test_target_without_a_peak_asks_for_one(small_bundle_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no macs_per_cycle; give the peak: --peak GMACS"):
        profile(small_bundle_path, threads=1)
