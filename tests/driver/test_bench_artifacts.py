"""Artifacts are made in other processes, kept, and made again when what they came from changes."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qcompiler.driver.bench_artifacts import RECORD, Source, described, prepare, prepared
from qcompiler.driver.data import Samples
from qcompiler.driver.peers.base import Made, Peer, PeerOptions, Request, Stage, size_of
from qcompiler.errors import ConfigError


def make(request: Request, stage: Stage) -> Made:
    with stage("write"):
        path = request.folder / "model"
        path.write_text(str(os.getpid()))
    return request.for_all_threads(path, size_of(path))


def end(request: Request, stage: Stage) -> Made:
    print("something dreadful", flush=True)
    os._exit(3)


PEER = Peer("fake", "int8", ("numpy",), make, "pytorch:eager", {"how": "well"})


@pytest.fixture
def source(tmp_path: Path) -> Source:
    program = tmp_path / "model.pt2"
    program.write_bytes(b"program")
    return Source(program, Samples((np.zeros((2, 3), np.float32),), None, 1, 2), (1, 2), PeerOptions())


def test_artifact_is_kept_until_something_changes(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "fake"
    first = prepare(PEER, source, folder)
    assert first.absent is None
    assert set(first.models) == {1, 2}
    assert first.size == (folder / "model").stat().st_size
    assert set(first.stages) == {"write"}
    maker = first.models[1].read_text()
    assert maker != str(os.getpid()), "it was made in a process of its own"
    again = prepare(PEER, source, folder)
    assert (again, again.models[1].read_text()) == (first, maker)
    assert prepared(PEER, source, folder) == first

    def stale(peer: Peer, changed: Source) -> bool:
        return prepared(peer, changed, folder).absent is not None

    assert stale(replace(PEER, settings={"how": "better"}), source)
    assert stale(replace(PEER, stamp=lambda: "another compiler"), source)
    assert stale(PEER, replace(source, threads=(1, 4)))
    assert stale(PEER, replace(source, samples=replace(source.samples, batch=2)))
    source.program.write_bytes(b"another program")
    assert stale(PEER, source)
    assert "prepare it first" in str(prepared(PEER, source, folder).absent)


def test_process_that_ends_leaves_its_last_words(source: Source, tmp_path: Path) -> None:
    artifact = prepare(replace(PEER, prepare=end), source, tmp_path / "fake")
    assert artifact.absent == "cannot prepare this model: its process ended with status 3: something dreadful"
    assert prepared(replace(PEER, prepare=end), source, tmp_path / "fake").absent == artifact.absent
    assert prepare(PEER, source, tmp_path / "fake").absent is None, "an engine that failed is tried again"


def test_interrupted_preparation_finds_what_it_left(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "fake"
    assert prepare(PEER, source, folder).stages
    (folder / RECORD).unlink()
    (folder / "half").write_text("done")
    again = prepare(PEER, source, folder)
    assert (again.absent, again.seconds) == (None, None), "it is not known what it took before"
    assert (folder / "half").exists()
    (folder / RECORD).unlink()
    changed = replace(PEER, settings={"how": "better"})
    assert prepare(changed, source, folder).stages
    assert not (folder / "half").exists(), "what another one left is gone"


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tvm_trials is 0"):
        PeerOptions(tvm_trials=0)
    with pytest.raises(ConfigError, match="give the path of a Python interpreter"):
        PeerOptions(executorch_python=tmp_path / "none")


def test_what_the_user_chose_is_a_setting() -> None:
    peer = replace(PEER, chosen=lambda options: {"trials": str(options.tvm_trials)})
    assert described(peer, PeerOptions(tvm_trials=7)).settings == {"how": "well", "trials": "7"}
    assert described(PEER, PeerOptions()).interpreter == sys.executable
