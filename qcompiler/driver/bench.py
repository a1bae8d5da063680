"""Latency of a bundle, side by side with other engines.

Every engine at every number of threads has a process of its own, because thread pools of different engines,
or of one engine with different numbers, disturb each other. The processes are measured in turns: a machine
that gets slower in between does so for all.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from torch.export import ExportedProgram

from qcompiler import runtime
from qcompiler.driver import bench_worker
from qcompiler.driver.bench_worker import OWN
from qcompiler.driver.data import Array, Samples, read_samples
from qcompiler.driver.peers import PEERS, Peer
from qcompiler.errors import BuildError, ConfigError
from qcompiler.frontend import capture
from qcompiler.report import progress as progress_bar
from qcompiler.runtime.threads import check_threads

ROUND_SECONDS = 0.2
"""Length of one measurement: long against the scheduler's slices, and short, so that the engines' turns come
soon one after the other."""

SETTLE_SECONDS = 0.05
"""Pause before each turn, in which the threads of the one before it stop waiting at full speed."""

BUSY_LOAD = 0.5
"""Load average above which other programs are likely to be measured too."""


@dataclass(frozen=True)
class Timing:
    """One engine at one number of threads.

    Attributes:
        engine: name of the engine.
        version: its version; empty if it is absent.
        dtype: what it computes in.
        threads: threads of one run.
        median: median over the rounds of the mean seconds of one run; None if there is no measurement.
        fastest: the fastest round's mean seconds.
        ratio: how many times as long as the bundle at the same number of threads it takes.
        absent: why there is no measurement, or None.
    """

    engine: str
    version: str
    dtype: str
    threads: int
    median: float | None = None
    fastest: float | None = None
    ratio: float | None = None
    absent: str | None = None


@dataclass(frozen=True)
class BenchResult:
    """What :func:`bench` measured.

    Attributes:
        cpu: the processor's name.
        load: load average of the last minute before the measurement.
        rounds: measurements of each engine.
        timings: the bundle's first, for each number of threads.
    """

    cpu: str
    load: float
    rounds: int
    timings: tuple[Timing, ...]

    @property
    def busy(self) -> bool:
        """Other programs were running: timings are too long, and not the same for all."""
        return self.load > BUSY_LOAD


def bench(
    bundle: Path,
    *,
    threads: Sequence[int] = (),
    against: Sequence[str] = (),
    model: str | None = None,
    calibration: Path | None = None,
    rounds: int = 10,
    require_signature: Path | None = None,
    progress: bool = False,
) -> BenchResult:
    """Measures how long one run takes.

    Args:
        bundle: the bundle's folder.
        threads: numbers of threads; all physical cores if empty.
        against: other engines, keys of ``PEERS``.
        model: the float model that the others start from.
        calibration: ``.npz`` that they are quantized with; its first sample is what all engines run on.
            Random numbers if not given.
        rounds: measurements of each engine.
        require_signature: a public key; the bundle must be signed by its owner.
        progress: show a progress bar.

    Raises:
        ConfigError: an engine is unknown, a number is not allowed, or the others lack a model or data.
        BuildError: the bundle's own process failed.
        QCompilerError: the bundle, the model or the data cannot be used.
    """
    load = os.getloadavg()[0]
    counts = [check_threads(number) for number in threads] or [check_threads(None)]
    peers = _peers(against)
    if rounds < 1:
        raise ConfigError(f"rounds is {rounds}; it must be at least 1")
    if peers and (model is None or calibration is None):
        raise ConfigError("other engines need the model to run: give --model and --calibration")
    manifest = runtime.verify(bundle, require_signature=require_signature)
    with tempfile.TemporaryDirectory(prefix="qcompiler-bench-") as scratch:
        folder = Path(scratch)
        samples = None if calibration is None else read_samples(calibration, manifest.inputs)
        stored = folder / "inputs.npz"
        np.savez(stored, *(_random_inputs(manifest) if samples is None else next(samples.batches())[1]))
        models = {OWN: bundle}
        absent: dict[str, str] = {}
        if model is not None and samples is not None:
            with progress_bar("prepare the other engines", len(peers), progress) as advance:
                program = capture.resolve(model)
                for peer in peers:
                    _prepare(peer, program, samples, folder, models, absent)
                    advance(1)
        engines = [
            Timing(OWN, manifest.versions.qcompiler, "int8", 0),
            *(Timing(peer.name, "" if peer.missing() else peer.version, peer.dtype, 0) for peer in peers),
        ]
        rows = [replace(engine, threads=count) for count in counts for engine in engines]
        timings = _measure(rows, models, absent, stored, rounds, progress)
    return BenchResult(runtime.cpu_name(), load, rounds, tuple(_with_ratio(t, timings) for t in timings))


def _peers(names: Sequence[str]) -> list[Peer]:
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ConfigError(f"unknown engine {unknown[0]!r}; known: {', '.join(PEERS)}")
    return [peer for name in dict.fromkeys(names) for peer in PEERS[name]]


def _random_inputs(manifest: runtime.Manifest) -> list[Array]:
    generator = np.random.default_rng(0)
    return [
        generator.standard_normal(spec.shape).astype(spec.dtype)
        if np.issubdtype(np.dtype(spec.dtype), np.floating)
        else np.zeros(spec.shape, spec.dtype)
        for spec in manifest.inputs
    ]


def _prepare(
    peer: Peer,
    program: ExportedProgram,
    samples: Samples,
    folder: Path,
    models: dict[str, Path],
    absent: dict[str, str],
) -> None:
    """Puts the engine's model into ``models``, or into ``absent`` why there is none."""
    reason = peer.missing()
    if reason is not None:
        absent[peer.name] = reason
        return
    own_folder = folder / peer.name
    own_folder.mkdir()
    try:
        with _quiet_output():
            models[peer.name] = peer.prepare(program, samples, own_folder)
    except Exception as error:  # whatever a foreign quantizer raises is a fact about it, and is shown
        absent[peer.name] = f"cannot prepare this model: {type(error).__name__}: {error}"


@contextmanager
def _quiet_output() -> Iterator[None]:
    """Moves what engines print to the standard error, so that the standard output has the result alone."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(saved, 1)
        os.close(saved)


def _measure(
    rows: Sequence[Timing],
    models: Mapping[str, Path],
    absent: Mapping[str, str],
    inputs: Path,
    rounds: int,
    progress: bool,
) -> list[Timing]:
    """The rows with their measurements, taken in turns."""
    result = list(rows)
    with ExitStack() as stack, progress_bar("measure", len(rows) * (rounds + 1), progress) as advance:
        workers: dict[int, _Worker] = {}
        for index, row in enumerate(rows):
            if row.engine in absent:
                result[index] = replace(row, absent=absent[row.engine])
                continue
            worker = stack.enter_context(_worker(row, models[row.engine], inputs))
            try:
                worker.start()
            except BuildError as error:
                if row.engine == OWN:
                    raise
                result[index] = replace(row, absent=str(error))
            else:
                workers[index] = worker
            advance(1)
        seconds: dict[int, list[float]] = {index: [] for index in workers}
        for _ in range(rounds):
            for index, worker in workers.items():
                time.sleep(SETTLE_SECONDS)
                seconds[index].append(worker.measure())
                advance(1)
    for index, measured in seconds.items():
        result[index] = replace(result[index], median=statistics.median(measured), fastest=min(measured))
    return result


class _Worker:
    """A process of ``bench_worker``."""

    def __init__(self, name: str, process: subprocess.Popen[str], errors: IO[str]) -> None:
        self._name = name
        self._process = process
        self._errors = errors
        self._runs = 1

    def start(self) -> None:
        """Waits until the model is loaded, and finds how many runs fill a round."""
        self._answer()
        for _ in range(3):  # the first ones are slow: caches, pages, code compiled at run time
            self._runs = max(1, math.ceil(ROUND_SECONDS / self._ask()))

    def measure(self) -> float:
        """Mean seconds of one run in a round."""
        return self._ask()

    def _ask(self) -> float:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{self._runs}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; its answer, or that there is none, says why
        return self._answer()

    def _answer(self) -> float:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise BuildError(f"{self._name} failed: {answer['error']}")
        return float(answer["seconds"])

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f"its process ended with status {status}" + (f": {lines[-1]}" if lines else "")


@contextmanager
def _worker(row: Timing, model: Path, inputs: Path) -> Iterator[_Worker]:
    """Starts the process of one row; it has ended when the block has."""
    arguments = [row.engine, str(model), str(row.threads), str(inputs)]
    # Engines that parallelize by OpenMP read their number of threads here.
    environment = {**os.environ, "OMP_NUM_THREADS": str(row.threads)}
    with tempfile.TemporaryFile("w+", errors="replace") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", bench_worker.__name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            yield _Worker(f"{row.engine} with {row.threads} threads", process, errors)
        finally:
            process.kill()
            process.communicate()


def _with_ratio(timing: Timing, timings: Sequence[Timing]) -> Timing:
    own = next(t.median for t in timings if (t.engine, t.threads) == (OWN, timing.threads))
    if own is None or timing.median is None:
        return timing
    return replace(timing, ratio=timing.median / own)
