"""Each engine that is installed computes the model that it was given."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from qcompiler.driver.bench import measure
from qcompiler.driver.bench_artifacts import Source, described, prepare
from qcompiler.driver.data import Samples
from qcompiler.driver.float_model import float_model
from qcompiler.driver.peers import PeerOptions, by_name, own
from qcompiler.driver.peers.base import SESSIONS, Peer

LEAST_DECIBELS = 20


def engine(name: str) -> Peer:
    return own.PEER if name == own.OWN else by_name(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qcompiler", "torch", "onnxruntime", "openvino", "inductor-pt2e", "tvm"])
def test_engines_compute_the_model(name: str, tmp_path: Path) -> None:
    peer = engine(name)
    if described(peer, PeerOptions()).absent is not None:
        pytest.skip(f"{name} is not installed")
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    )
    images = np.random.default_rng(0).standard_normal((16, 3, 8, 8)).astype(np.float32)
    program = torch.export.export(network.eval(), (torch.from_numpy(images[:1]),))
    archive = tmp_path / "model.pt2"
    torch.export.save(program, archive)
    source = Source(archive, Samples((images,), None, 1, 16), (1,), PeerOptions(tvm_trials=1))
    artifact = prepare(peer, source, tmp_path / name)
    assert artifact.absent is None
    expected = float_model(program)(images[:1])
    (timing,) = measure([artifact], [images[:1]], [1], rounds=1, expected=expected).timings
    assert timing.absent is None
    assert timing.sqnr_db is not None
    assert timing.sqnr_db > LEAST_DECIBELS


def test_sessions_import_nothing_but_their_engine() -> None:
    """A measured process holds nothing that would count as the engine's."""
    for file in sorted(SESSIONS.glob("*.py")):
        words = file.read_text()
        assert ("qcompiler" in words.split('"""', 2)[2]) == (file.stem == "own"), file


def test_executorch_asks_the_interpreter_it_is_given(tmp_path: Path) -> None:
    peer = by_name("executorch")
    if importlib.util.find_spec("executorch") is None:
        assert "--executorch-python" in str(described(peer, PeerOptions()).absent)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho no such package >&2\nexit 1\n")
    python.chmod(0o755)
    found = described(peer, PeerOptions(executorch_python=python))
    assert found.interpreter == str(python)
    assert found.absent == f"{python} has no ExecuTorch: no such package"
    python.write_text("#!/bin/sh\necho 9.9 1.2.3\n")
    assert described(peer, PeerOptions(executorch_python=python)).version == "1.2.3"


def test_stamp_is_of_the_compiler() -> None:
    assert own.stamp() == own.stamp()
    assert len(own.stamp()) == 16
