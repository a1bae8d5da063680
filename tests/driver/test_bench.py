"""Engines are measured in processes of their own, and absent ones are named."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from qcompiler.driver import bench as module
from qcompiler.driver import bench_worker
from qcompiler.driver.bench import Timing, _with_ratio, bench
from qcompiler.driver.data import Samples
from qcompiler.driver.float_model import float_model
from qcompiler.driver.peers import PEERS, Peer, by_name, pytorch
from qcompiler.errors import BuildError, ConfigError


def broken(*_arguments: object) -> Any:
    raise RuntimeError("does not like it")


def test_bundle_alone(small_bundle_path: Path) -> None:
    result = bench(small_bundle_path, threads=[1], rounds=2)
    (timing,) = result.timings
    assert (timing.engine, timing.threads, timing.ratio, timing.absent) == ("qcompiler", 1, 1.0, None)
    assert timing.median is not None
    assert timing.fastest is not None
    assert 0 < timing.fastest <= timing.median


def test_engines_are_known_by_their_names() -> None:
    assert {name: [peer.name for peer in peers] for name, peers in PEERS.items()} == {
        "torch": ["torch", "torch.compile"],
        "onnxruntime": ["onnxruntime"],
        "openvino": ["openvino"],
    }
    assert by_name("torch.compile") is pytorch.COMPILED


def test_absent_and_failing_engines_are_named(
    small_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Add(nn.Module):
        def forward(self, x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return x + 1

    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(Add(), (torch.zeros(4, 32), torch.zeros(64))), path)
    np.savez(tmp_path / "c.npz", x=np.zeros((4, 32), np.float32), b=np.zeros(64, np.float32))
    peers = {
        "torch": (replace(pytorch.EAGER, packages=("torch",)),),
        "none": (Peer("none", "int8", ("package_that_is_not_there",), broken, broken),),
        "broken": (Peer("broken", "int8", ("torch",), broken, broken),),
        "unknown": (Peer("unknown", "int8", ("torch",), pytorch.prepare, broken),),
    }
    monkeypatch.setattr(module, "PEERS", peers)
    result = bench(
        small_bundle_path,
        threads=[1],
        against=list(peers),
        model=str(path),
        calibration=tmp_path / "c.npz",
        rounds=1,
    )
    own, eager, none, failed, unknown = result.timings
    assert own.ratio == 1.0
    assert eager.median is not None
    assert none.absent is not None
    assert none.absent.startswith("not installed: package_that_is_not_there")
    assert failed.absent == "cannot prepare this model: RuntimeError: does not like it"
    # The process does not know the engine, as it has the real table of them.
    assert unknown.absent is not None
    assert "StopIteration" in unknown.absent


def test_bundle_that_cannot_run_is_an_error(small_bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_worker, "__name__", "module_that_is_not_there")
    with pytest.raises(
        BuildError, match="qcompiler with 1 threads failed: its process ended with status 1: "
    ):
        bench(small_bundle_path, threads=[1], rounds=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": ["tflite"]}, "unknown engine 'tflite'; known: torch, onnxruntime, openvino"),
        ({"against": ["torch"]}, "give --model and --calibration"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": [0]}, "threads is 0"),
    ],
)
def test_wrong_options_are_refused(small_bundle_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bench(small_bundle_path, **options)  # type: ignore[arg-type]


def test_ratio_is_to_the_bundle_with_as_many_threads() -> None:
    rows = [
        Timing("qcompiler", "", "int8", 1, median=1.0),
        Timing("qcompiler", "", "int8", 2, median=0.5),
        Timing("x", "", "int8", 2, median=2.0),
    ]
    assert [_with_ratio(row, rows).ratio for row in rows] == [1.0, 1.0, 4.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torch", "onnxruntime", "openvino"])
def test_engines_compute_the_model(name: str, tmp_path: Path) -> None:
    peer = by_name(name)
    if any(importlib.util.find_spec(package) is None for package in peer.packages):
        pytest.skip(f"{name} is not installed")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    images = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    program = torch.export.export(network.eval(), (torch.from_numpy(images[:1]),))
    model = peer.prepare(program, Samples((images,), None, 1, 16), tmp_path)
    found = np.asarray(peer.session(model, 1)([images[:1]])[0]).reshape(5)
    wanted = float_model(program)(images[:1])[0].reshape(5)
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()
