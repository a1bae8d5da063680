"""Engines are measured in processes of their own, and absent ones are named."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_bundle
import torch
from torch import nn

from qcompiler.driver import bench as module
from qcompiler.driver import bench_process
from qcompiler.driver.bench import Timing, _sqnr, _with_ratio, bench
from qcompiler.driver.peers import PEERS, Request, by_name, own, pytorch
from qcompiler.driver.peers.base import Made, Stage
from qcompiler.errors import BuildError, ConfigError


def broken(request: Request, stage: Stage) -> Made:
    raise RuntimeError("does not like it\nat all")


def test_bundle_alone(small_bundle_path: Path) -> None:
    result = bench(small_bundle_path, threads=[1], rounds=2)
    (timing,) = result.timings
    assert (timing.engine, timing.threads, timing.ratio, timing.absent) == ("qcompiler", 1, 1.0, None)
    assert timing.median is not None
    assert timing.fastest is not None
    assert 0 < timing.fastest <= timing.median
    assert timing.start_seconds == pytest.approx(
        timing.import_seconds + timing.session_seconds + timing.first_seconds  # type: ignore[operator]
    )
    assert timing.baseline_bytes is not None
    assert timing.imported_bytes is not None
    assert timing.peak_bytes is not None
    assert 0 < timing.baseline_bytes < timing.imported_bytes < timing.peak_bytes
    assert timing.artifact_bytes is not None
    assert timing.artifact_bytes >= (small_bundle_path / "model.so").stat().st_size


def test_engines_are_known_by_their_names() -> None:
    assert {name: [peer.name for peer in peers] for name, peers in PEERS.items()} == {
        "torch": ["torch", "torch.compile"],
        "onnxruntime": ["onnxruntime"],
        "openvino": ["openvino"],
        **{name: [name] for name in ("onnxruntime-fp32", "openvino-fp32", "openvino-bf16")},
        "inductor": ["inductor-x86", "inductor-pt2e"],
        "executorch": ["executorch"],
        "tvm": ["tvm"],
    }
    assert by_name("torch.compile") is pytorch.COMPILED


def test_absent_and_failing_engines_are_named(
    small_bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.from_numpy(small_bundle.weights()))
            self.register_buffer("constant", torch.from_numpy(small_bundle.constant()))

        def forward(self, x: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
            y = x.relu() @ self.weight + b
            return y, y.relu(), x * 1, self.constant * 1, y.relu()

    path = tmp_path / "m.pt2"
    torch.export.save(torch.export.export(Small().eval(), (torch.zeros(4, 32), torch.zeros(64))), path)
    x, b = small_bundle.inputs()
    np.savez(tmp_path / "c.npz", x=x, b=b)
    peers = {
        "torch": (pytorch.EAGER,),
        "none": (replace(pytorch.EAGER, name="none", packages=("package_that_is_not_there",)),),
        "broken": (replace(pytorch.EAGER, name="broken", prepare=broken),),
        "unable": (replace(pytorch.EAGER, name="unable", session="pytorch:no_such_function"),),
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
    ours, eager, none, failed, unable = result.timings
    assert ours.ratio == 1.0
    assert eager.median is not None
    assert eager.compile_seconds == sum(eager.stages.values()) > 0
    assert eager.sqnr_db is not None
    assert eager.sqnr_db > 100
    assert none.absent is not None
    assert none.absent.startswith("not installed: package_that_is_not_there")
    assert failed.absent == "cannot prepare this model: RuntimeError: does not like it"
    assert unable.absent is not None
    assert "AttributeError" in unable.absent
    assert "no_such_function" in unable.absent


def test_bundle_that_cannot_run_is_an_error(small_bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "PEER", replace(own.PEER, session="own:no_such_function"))
    with pytest.raises(BuildError, match="qcompiler with 1 threads failed: AttributeError"):
        bench(small_bundle_path, threads=[1], rounds=1)


def test_process_that_ends_is_an_error(small_bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_process, "WORKER", small_bundle_path / "no_such_file.py")
    with pytest.raises(BuildError, match=r"failed: its process ended with status 2: .*no_such_file"):
        bench(small_bundle_path, threads=[1], rounds=1)


def test_outputs_of_other_shapes_are_refused() -> None:
    a, b = np.ones((2, 3)), np.ones((3, 2))
    assert _sqnr([a], [a]) == math.inf
    with pytest.raises(BuildError, match="shapes"):
        _sqnr([a], [b])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": ["tflite"]}, "unknown engine 'tflite'; known: torch, onnxruntime, openvino"),
        ({"against": ["torch"]}, "give --model and --calibration"),
        ({"rounds": 0}, "rounds is 0"),
        ({"starts": -1}, "starts is -1"),
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
