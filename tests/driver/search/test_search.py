"""The search: which plan it takes, that it goes on after a missed promise, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.config import CompileConfig
from qcompiler.driver.search import gate, search
from qcompiler.driver.search.result import Attempt, SearchConfig, SearchResult
from qcompiler.driver.search.solve import Costs
from qcompiler.errors import ConfigError, SearchError
from qcompiler.quantization.network import Network
from qcompiler.quantization.plan import Plan

LAYERS = ("0", "2", "4", "8")
FLOAT_SECONDS = {"0": 4e-5, "2": 3e-5, "4": 2e-5, "8": 1e-5}


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():  # one channel's values leave no room for the others between layers 0 and 2
        model[0].weight[0] *= 300.0
        model[2].weight[:, 0] /= 300.0
        model[8].bias -= model(images()).mean(0)  # or one class would win everywhere
    return model


def images() -> torch.Tensor:
    return torch.randn(96, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    model, x = network(), images()
    torch.export.save(torch.export.export(model, (x[:1],)), folder / "m.pt2")
    np.savez(folder / "c.npz", x=x[:32].numpy())
    with torch.no_grad():
        np.savez(folder / "d.npz", x=x.numpy(), labels=model(x).argmax(1).numpy())
    return folder


def made_up(compiler: Any, found: Network, noise: Any, **_: Any) -> tuple[Costs, dict[str, float]]:
    """Costs in which float is slower by a time that depends on the layer, bf16 half as much; conversions are cheap."""
    slower = {"int8": 0.0, "bf16": 0.5, "fp32": 1.0}
    seconds = tuple(
        {p: 1e-6 + slower[p] * FLOAT_SECONDS.get(site.name, 0.0) for p in of_site}
        for site, of_site in zip(found.sites, noise, strict=True)
    )
    changes = tuple({("fp32", "int8"): 1e-7, ("int8", "fp32"): 1e-7} for _ in found.tensors)
    return Costs(seconds, tuple(noise), changes), {"int8": 1e-5, "fp32": 1e-4}  # type: ignore[arg-type]


def run(files: Path, output: Path, **goal: Any) -> SearchResult:
    return search.search(
        str(files / "m.pt2"), CompileConfig(), SearchConfig(**{"threads": 1, "points": 6, "precisions": ("int8", "fp32"), **goal}),
        calibration=files / "c.npz", data=files / "d.npz", output=output,
    )  # fmt: skip


Measure = Callable[..., tuple[Attempt, int]]


def measured(drop: float = 0.0, factor: float = 1.0, missed: int = 0) -> Measure:
    """Attempts that keep what is promised, but for the first ``missed``, which have the given drop and latency."""
    count = 0

    def attempt(*arguments: Any) -> tuple[Attempt, int]:
        nonlocal count
        promised = arguments[-1]
        count += 1
        kept = count > missed
        seconds = promised.seconds * (1.0 if kept else factor)
        found = promised.drop if kept else promised.drop + drop
        return Attempt(promised, seconds, found, 30.0, None if kept else "drop too large"), 1

    return attempt


def test_the_fastest_plan_of_the_front_with_the_least_that_is_needed_in_float(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "measure_costs", made_up)
    monkeypatch.setattr(search, "_attempt", measured())
    result = run(files, tmp_path / "plan.json", max_drop=5.0)
    noise = {layer.name: layer.sqnr_db["int8"] for layer in result.layers}
    assert min(noise, key=noise.__getitem__) in ("0", "2")
    drops = [point.drop for point in result.front]
    assert drops[0] is not None
    assert drops[0] > 0.05  # all in int8 loses too much
    assert drops[-1] == 0.0
    chosen = result.chosen.promised
    assert "2" in chosen.float_layers
    assert chosen == next(p for p in result.front if p.drop is not None and p.drop <= 0.05)
    plan = Plan.load(tmp_path / "plan.json")
    assert [name for name, p in plan.layers.items() if p == "fp32"] == list(chosen.float_layers)
    assert plan.notes["promised"]["drop_in_points"] == round(100 * chosen.drop, 4)


def test_after_a_missed_promise_the_search_goes_on(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(search, "measure_costs", made_up)
    monkeypatch.setattr(search, "_attempt", measured(drop=0.5, missed=1))
    result = run(files, tmp_path / "plan.json", max_drop=5.0)
    first, second = result.attempts
    assert first.missed is not None
    assert "missed its promise" in caplog.text
    assert second.promised.sqnr_db > first.promised.sqnr_db
    assert second.promised.seconds > first.promised.seconds


def test_a_latency_that_is_missed_tightens_the_bound(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "measure_costs", made_up)
    monkeypatch.setattr(search, "_attempt", measured(factor=1.5, missed=1))
    result = run(files, tmp_path / "plan.json", max_latency=6e-5)
    first, second = result.attempts
    assert first.promised.seconds <= 6e-5
    assert second.promised.seconds <= 6e-5 / 1.5


def test_what_cannot_be_kept_is_said_and_nothing_is_written(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "measure_costs", made_up)
    monkeypatch.setattr(search, "_attempt", measured(drop=0.5, missed=99))
    with pytest.raises(SearchError, match=r"at most 0\.00100 ms: the fastest plan promises 0\.00620 ms"):
        run(files, tmp_path / "plan.json", max_latency=1e-6)
    with pytest.raises(SearchError, match="plans were compiled and measured; the last one missed it"):
        run(files, tmp_path / "plan.json", max_drop=5.0)
    assert list(tmp_path.iterdir()) == []


def test_refusals(files: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="needs a promise"):
        SearchConfig()
    with pytest.raises(ConfigError, match="max_drop is -1"):
        SearchConfig(max_drop=-1)
    with pytest.raises(ConfigError, match="max_latency is 0"):
        SearchConfig(max_latency=0)
    with pytest.raises(ConfigError, match="'fp8' is none; allowed: int8, fp32, bf16, fp16"):
        SearchConfig(max_drop=1, precisions=("int8", "fp8", "fp32"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="int8 and fp32 must be among them"):
        SearchConfig(max_drop=1, precisions=("int8", "bf16"))
    with pytest.raises(SearchError, match="arm-neon cannot run on this machine"):
        search.search(
            str(files / "m.pt2"), CompileConfig(target="arm-neon"), SearchConfig(max_drop=1),
            calibration=files / "c.npz", output=tmp_path / "p.json",
        )  # fmt: skip
    with pytest.raises(ConfigError, match="gate and plan"):
        CompileConfig(gate=True, plan=tmp_path / "p.json")


def test_the_gate_keeps_the_faster_and_tells_both_times(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def costs(*arguments: Any, **options: Any) -> tuple[Costs, dict[str, float]]:
        found, runs = made_up(*arguments, **options)
        times = [dict(one) for one in found.seconds]
        times[1] = {"int8": 9e-6, "fp32": 2e-6}  # layer 2 is faster in float
        times[2] = {"int8": 1e-6, "fp32": 0.99e-6}  # layer 4 as well, but by less than can be measured
        return replace(found, seconds=tuple(times)), runs  # type: ignore[arg-type]

    monkeypatch.setattr(gate, "measure_costs", costs)
    compiled = qcompiler.compile(
        str(files / "m.pt2"), calibration=str(files / "c.npz"), output=tmp_path / "bundle", gate=True
    )
    reasons = {r.reason for r in compiled.manifest.float_operators if r.operator == "conv2d"}
    assert reasons == {"gate: int8 9.0 us, fp32 2.0 us"}


@pytest.mark.slow
def test_a_search_as_a_whole_keeps_its_promise(files: Path, tmp_path: Path) -> None:
    result = run(files, tmp_path / "plan.json", max_drop=5.0)
    chosen = result.chosen
    assert chosen.missed is None
    assert chosen.drop is not None
    assert chosen.drop <= 0.05
    assert "2" in chosen.promised.float_layers
    assert all(seconds > 0 for layer in result.layers for seconds in layer.seconds.values())
    assert result.samples == 96


@pytest.mark.slow
def test_a_search_with_three_precisions_keeps_its_promise(files: Path, tmp_path: Path) -> None:
    result = run(files, tmp_path / "plan.json", max_drop=5.0, precisions=("int8", "bf16", "fp32"))
    assert result.chosen.missed is None
    assert list(result.uniform_seconds) == ["int8", "bf16", "fp32"]
    convolution, pool = result.layers[0], result.layers[3]
    assert set(convolution.seconds) == {"int8", "bf16", "fp32"}
    assert set(pool.seconds) == {"int8", "fp32"}
    assert convolution.sqnr_db["bf16"] > convolution.sqnr_db["int8"]


def test_bf16_is_chosen_where_it_is_faster_than_fp32_and_exact_enough(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "measure_costs", made_up)
    monkeypatch.setattr(search, "_attempt", measured())
    result = run(files, tmp_path / "plan.json", max_drop=5.0, precisions=("bf16", "fp32", "int8"))
    in_float = result.chosen.promised.float_layers
    assert "bf16" in in_float.values()
    plan = Plan.load(tmp_path / "plan.json")
    assert {name: p for name, p in plan.layers.items() if p != "int8"} == in_float
    assert any(
        "fp16 was not tried" in remark and "--precisions int8,fp32,fp16" in remark
        for remark in result.remarks
    )
    assert not any(remark.startswith("bf16") for remark in result.remarks)
    whole = run(files, tmp_path / "plan.json", max_drop=5.0)
    assert result.chosen.promised.seconds < whole.chosen.promised.seconds
    assert any(remark.startswith("bf16 was not tried: ") for remark in whole.remarks)
