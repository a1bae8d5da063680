"""What an engine is to the benchmark."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.driver.data import Samples
from qcompiler.errors import ConfigError

if TYPE_CHECKING:
    from torch.export import ExportedProgram

SESSIONS = Path(__file__).with_name("sessions")
"""Folder of the files that load and run an engine's model. They stand alone, so that a measured process holds
nothing but Python, NumPy and its engine."""


@dataclass(frozen=True)
class PeerOptions:
    """What a user says about engines.

    Attributes:
        executorch_python: an interpreter that has ExecuTorch; None for the one that runs this.
        tvm_trials: schedules that TVM's own search measures for a whole model.
    """

    executorch_python: Path | None = None
    tvm_trials: int = 64

    def __post_init__(self) -> None:
        if self.tvm_trials < 1:
            raise ConfigError(f"tvm_trials is {self.tvm_trials}; it must be at least 1")
        if self.executorch_python is not None and not self.executorch_python.is_file():
            raise ConfigError(
                f"executorch_python {self.executorch_python} is no file; give the path of a Python interpreter"
            )


@dataclass(frozen=True, eq=False)
class Request:
    """What an engine's artifact is made from.

    Attributes:
        program: the float model, a ``.pt2`` archive.
        samples: calibration data.
        folder: a folder to write into; empty, or with what an interrupted preparation of the same left.
        threads: numbers of threads that it will be run with.
        options: what the user says about engines.
    """

    program: Path
    samples: Samples
    folder: Path
    threads: tuple[int, ...]
    options: PeerOptions

    def load(self) -> ExportedProgram:
        import torch

        return torch.export.load(self.program)

    def for_all_threads(self, model: Path, size: int) -> Made:
        """The result of an engine whose one artifact serves any number of threads."""
        return Made(dict.fromkeys(self.threads, model), size)


@dataclass(frozen=True)
class Made:
    """What an engine prepared.

    Attributes:
        models: for each number of threads what the session opens; inside the request's folder.
        size: bytes that have to be shipped for one model, the engine itself aside.
    """

    models: Mapping[int, Path]
    size: int


@dataclass(frozen=True)
class Probe:
    """Whether an engine is here: its version, or why it is absent."""

    version: str
    absent: str | None = None


class Stages:
    """Seconds of the named steps of a preparation, imports left out."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


Stage = Callable[[str], AbstractContextManager[None]]


def installed(peer: Peer, options: PeerOptions) -> Probe:
    """Whether the packages of ``peer`` are in this interpreter."""
    absent = [name for name in peer.packages if importlib.util.find_spec(name) is None]
    if absent:
        return Probe("", f"not installed: {', '.join(absent)} (pip install 'qcompiler[peers]')")
    return Probe(importlib.metadata.version(peer.distribution or peer.packages[0]))


@dataclass(frozen=True)
class Peer:
    """An engine that runs a model.

    Attributes:
        name: its name in reports.
        dtype: what it computes in.
        packages: import names of what it needs, its own first.
        prepare: makes its artifact; runs in a process of its own, and is importable by its name.
        session: ``file:function`` in :data:`SESSIONS`.
        settings: how it was set up for speed, in words; a change makes cached artifacts stale.
        distribution: name of the package that has its version, where that is not ``packages[0]``.
        probe: whether it can run here.
        interpreter: the Python that its sessions run in.
        chosen: what of the settings the user's options say.
        stamp: what else makes cached artifacts stale when it changes.
    """

    name: str
    dtype: str
    packages: tuple[str, ...]
    prepare: Callable[[Request, Stage], Made]
    session: str
    settings: Mapping[str, str] = field(default_factory=dict)
    distribution: str = ""
    probe: Callable[[Peer, PeerOptions], Probe] = installed
    interpreter: Callable[[PeerOptions], str] = lambda options: sys.executable
    chosen: Callable[[PeerOptions], Mapping[str, str]] = lambda options: {}
    stamp: Callable[[], str] = str


def size_of(*paths: Path) -> int:
    """Bytes of files, and of all files in folders."""
    files = [f for path in paths for f in (path.rglob("*") if path.is_dir() else (path,))]
    return sum(f.stat().st_size for f in files if f.is_file())
