"""Speed, start-up, memory and size of a bundle, side by side with other engines.

Every engine at every number of threads has a process of its own, because thread pools of different engines,
or of one engine with different numbers, disturb each other. The processes are measured in turns: a machine
that gets slower in between does so for all.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from qcompiler import runtime
from qcompiler.driver.bench_artifacts import Artifact, Source, described, prepare
from qcompiler.driver.bench_load import OtherPrograms
from qcompiler.driver.bench_process import Start, worker
from qcompiler.driver.data import Array, read_samples
from qcompiler.driver.evaluate import Sqnr
from qcompiler.driver.float_model import float_model
from qcompiler.driver.peers import PEERS, Peer, PeerOptions, own
from qcompiler.driver.peers.own import OWN
from qcompiler.errors import BuildError, ConfigError
from qcompiler.frontend import capture
from qcompiler.report import progress as progress_bar
from qcompiler.runtime.threads import check_threads

SETTLE_SECONDS = 0.05
"""Pause before each turn, in which the threads of the one before it stop waiting at full speed."""

UNSTEADY = 1.12
"""Median over fastest round of the median engine: above it something that is no program here, such as another guest of
a virtual machine's host, slowed many rounds down."""

BUSY_CORES = 0.08
"""Share of a core that other programs may take: above it they delay an engine that uses all cores noticeably."""


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
        compile_seconds: from the float model to the engine's artifact, imports left out; None if unknown.
        stages: ``compile_seconds`` by its steps.
        import_seconds: importing the engine's package in a fresh process.
        session_seconds: from there to a loaded model.
        first_seconds: the first run.
        start_seconds: the sum of these three: from just before the import to the first output.
        baseline_bytes: resident bytes of the process before the import: Python, NumPy and the inputs.
        imported_bytes: the same after it.
        peak_bytes: the most resident bytes of the process, ``baseline_bytes`` included, after all runs.
        artifact_bytes: what has to be shipped for the model, the engine itself aside.
        sqnr_db: signal to quantization noise of the outputs against the float model's, in decibels; None without
            a float model.
        settings: how the engine was set up, in words.
    """

    engine: str
    version: str
    dtype: str
    threads: int
    median: float | None = None
    fastest: float | None = None
    ratio: float | None = None
    absent: str | None = None
    compile_seconds: float | None = None
    stages: Mapping[str, float] = field(default_factory=dict)
    import_seconds: float | None = None
    session_seconds: float | None = None
    first_seconds: float | None = None
    start_seconds: float | None = None
    baseline_bytes: int | None = None
    imported_bytes: int | None = None
    peak_bytes: int | None = None
    artifact_bytes: int | None = None
    sqnr_db: float | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BenchResult:
    """What :func:`bench` measured.

    Attributes:
        cpu: the processor's name.
        others: cores that other programs kept busy during the rounds, on the average.
        rounds: measurements of each engine.
        starts: fresh processes of each engine whose start was measured; 0 if it was that of the measured one.
        timings: the bundle's first, for each number of threads.
    """

    cpu: str
    others: float
    rounds: int
    starts: int
    timings: tuple[Timing, ...]

    @property
    def spread(self) -> float:
        """The median over the engines of their median round as a multiple of their fastest; 1 if none ran."""
        ratios = [t.median / t.fastest for t in self.timings if t.median is not None and t.fastest]
        return statistics.median(ratios) if ratios else 1.0

    @property
    def busy(self) -> bool:
        """The machine was not idle: timings are too long, and not the same for all."""
        return self.others > BUSY_CORES or self.spread > UNSTEADY


def bench(
    bundle: Path,
    *,
    threads: Sequence[int] = (),
    against: Sequence[str] = (),
    model: str | None = None,
    calibration: Path | None = None,
    rounds: int = 10,
    starts: int = 0,
    options: PeerOptions | None = None,
    require_signature: Path | None = None,
    progress: bool = False,
) -> BenchResult:
    """Measures how long one run takes, how a process starts, and what memory it needs.

    Args:
        bundle: the bundle's folder.
        threads: numbers of threads; all physical cores if empty.
        against: other engines, keys of ``PEERS``.
        model: the float model that the others start from.
        calibration: ``.npz`` that they are quantized with; its first sample is what all engines run on.
            Random numbers if not given.
        rounds: measurements of each engine.
        starts: as of :func:`measure`.
        options: what the user says about engines.
        require_signature: a public key; the bundle must be signed by its owner.
        progress: show a progress bar.

    Raises:
        ConfigError: an engine is unknown, a number is not allowed, or the others lack a model or data.
        BuildError: the bundle's own process failed.
        QCompilerError: the bundle, the model or the data cannot be used.
    """
    counts = [check_threads(number) for number in threads] or [check_threads(None)]
    peers = find_peers(against)
    if peers and (model is None or calibration is None):
        raise ConfigError("other engines need the model to run: give --model and --calibration")
    manifest = runtime.verify(bundle, require_signature=require_signature)
    settings = options or PeerOptions()
    with tempfile.TemporaryDirectory(prefix="qcompiler-bench-") as scratch:
        folder = Path(scratch)
        samples = None if calibration is None else read_samples(calibration, manifest.inputs)
        inputs = _random_inputs(manifest) if samples is None else list(next(samples.batches())[1])
        artifacts = [bundle_artifact(bundle, counts, settings)]
        expected = None
        if model is not None and samples is not None:
            program = capture.resolve(model, shapes=[spec.shape for spec in manifest.inputs])
            expected = float_model(program)(*inputs)
            archive = folder / "model.pt2"
            torch.export.save(program, archive)
            source = Source(archive, samples, tuple(counts), settings)
            with progress_bar("prepare the other engines", len(peers), progress) as advance:
                for peer in peers:
                    artifacts.append(prepare(peer, source, folder / peer.name))
                    advance(1)
        return measure(
            artifacts, inputs, counts, rounds=rounds, starts=starts, expected=expected, progress=progress
        )


def find_peers(names: Sequence[str]) -> list[Peer]:
    """The engines of these keys of ``PEERS``.

    Raises:
        ConfigError: one is unknown.
    """
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise ConfigError(f"unknown engine {unknown[0]!r}; known: {', '.join(PEERS)}")
    return [peer for name in dict.fromkeys(names) for peer in PEERS[name]]


def bundle_artifact(
    bundle: Path, threads: Sequence[int], options: PeerOptions, stages: Mapping[str, float] | None = None
) -> Artifact:
    """A bundle as the artifact of our own engine; ``stages`` are the seconds that made it, where they are known."""
    manifest = runtime.read_manifest(bundle)
    formats = {layer.arithmetic.split(" ")[0] for layer in manifest.layers if layer.arithmetic}
    return replace(
        described(own.PEER, options),
        version=manifest.versions.qcompiler,
        dtype="+".join(sorted(formats)).replace("uint8", "int8") or "float32",
        models=dict.fromkeys(threads, bundle),
        size=own.bundle_size(bundle),
        stages=stages or {},
    )


def measure(
    artifacts: Sequence[Artifact],
    inputs: Sequence[Array],
    threads: Sequence[int],
    *,
    rounds: int = 10,
    starts: int = 0,
    expected: Sequence[Array] | None = None,
    progress: bool = False,
) -> BenchResult:
    """Measures prepared engines side by side.

    Args:
        artifacts: the engines; ours among them for ratios.
        inputs: one array a model input.
        threads: numbers of threads.
        rounds: measurements of each engine at each number of threads; the median counts.
        starts: fresh processes that only start, in turns, after each engine has been started once, so that all
            files are in memory; the median counts. With 0 the one start of the measured process counts.
        expected: the float model's outputs for ``inputs``.
        progress: show a progress bar.

    Raises:
        ConfigError: ``rounds`` or ``starts`` is not allowed.
        BuildError: our own process failed.
    """
    for name, value, least in (("rounds", rounds, 1), ("starts", starts, 0)):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    jobs = [(artifact, count) for count in threads for artifact in artifacts]
    timings = [_row(artifact, count) for artifact, count in jobs]
    with tempfile.TemporaryDirectory(prefix="qcompiler-bench-") as folder:
        stored = Path(folder) / "inputs.npz"
        np.savez(stored, *inputs)
        timings, others = _measure(jobs, timings, stored, rounds, starts, expected, progress)
    return BenchResult(
        runtime.cpu_name(), others, rounds, starts, tuple(_with_ratio(t, timings) for t in timings)
    )


def _random_inputs(manifest: runtime.Manifest) -> list[Array]:
    generator = np.random.default_rng(0)
    return [
        generator.standard_normal(spec.shape).astype(spec.dtype)
        if np.issubdtype(np.dtype(spec.dtype), np.floating)
        else np.zeros(spec.shape, spec.dtype)
        for spec in manifest.inputs
    ]


def _row(artifact: Artifact, threads: int) -> Timing:
    return Timing(
        artifact.engine,
        artifact.version,
        artifact.dtype,
        threads,
        absent=artifact.absent,
        compile_seconds=artifact.seconds,
        stages=artifact.stages,
        artifact_bytes=artifact.size,
        settings=artifact.settings,
    )


def _measure(
    jobs: Sequence[tuple[Artifact, int]],
    rows: Sequence[Timing],
    inputs: Path,
    rounds: int,
    starts: int,
    expected: Sequence[Array] | None,
    progress: bool,
) -> tuple[list[Timing], float]:
    """The rows with their measurements, taken in turns, and what other programs took meanwhile."""
    result = list(rows)
    steps = len(rows) * (1 + starts + rounds)
    with ExitStack() as stack, progress_bar("measure", steps, progress) as advance:
        workers = {}
        for index, (artifact, count) in enumerate(jobs):
            if artifact.absent is None:
                held = stack.enter_context(worker(artifact, count, inputs))
                try:
                    begun = held.start()
                    held.warm_up()
                    found = None if expected is None else held.outputs()
                except BuildError as error:
                    if artifact.engine == OWN:
                        raise
                    result[index] = replace(result[index], absent=str(error))
                else:
                    workers[index] = held
                    result[index] = _with_start(result[index], [begun])
                    if expected is not None and found is not None:
                        result[index] = replace(result[index], sqnr_db=_sqnr(expected, found))
            advance(1)
        begins: dict[int, list[Start]] = {index: [] for index in workers}
        for _ in range(starts):
            for index in workers:
                time.sleep(SETTLE_SECONDS)
                with worker(*jobs[index], inputs) as fresh:
                    begins[index].append(fresh.start())
                advance(1)
        seconds: dict[int, list[float]] = {index: [] for index in workers}
        others = OtherPrograms(held.pid for held in workers.values())
        for _ in range(rounds):
            for index, held in workers.items():
                time.sleep(SETTLE_SECONDS)
                seconds[index].append(held.measure())
                advance(1)
        cores = others.cores()
        for index, held in workers.items():
            row = _with_start(result[index], begins[index]) if starts else result[index]
            result[index] = replace(
                row,
                median=statistics.median(seconds[index]),
                fastest=min(seconds[index]),
                peak_bytes=held.peak_bytes(),
            )
    return result, cores


def _with_start(row: Timing, begins: Sequence[Start]) -> Timing:
    """The row with the medians of some starts."""
    return replace(
        row,
        import_seconds=statistics.median(start.import_seconds for start in begins),
        session_seconds=statistics.median(start.session_seconds for start in begins),
        first_seconds=statistics.median(start.first_seconds for start in begins),
        start_seconds=statistics.median(start.seconds for start in begins),
        baseline_bytes=_median_bytes([start.baseline_bytes for start in begins]),
        imported_bytes=_median_bytes([start.imported_bytes for start in begins]),
    )


def _median_bytes(counts: Sequence[int | None]) -> int | None:
    known = [count for count in counts if count is not None]
    return int(statistics.median(known)) if known else None


def _sqnr(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """Signal to noise over the float outputs, which must be the model's.

    Raises:
        BuildError: they are not of its shapes.
    """
    if [a.shape for a in expected] != [a.shape for a in found]:
        shapes = [list(a.shape) for a in found], [list(a.shape) for a in expected]
        raise BuildError(
            f"an engine's outputs have shapes {shapes[0]}, the float model's {shapes[1]}: give the --model that "
            "the bundle was compiled from"
        )
    ratio = Sqnr()
    for wanted, output in zip(expected, found, strict=True):
        ratio.add(wanted, output)
    return ratio.decibels


def _with_ratio(timing: Timing, timings: Sequence[Timing]) -> Timing:
    own_row = next((t for t in timings if (t.engine, t.threads) == (OWN, timing.threads)), None)
    if own_row is None or own_row.median is None or timing.median is None:
        return timing
    return replace(timing, ratio=timing.median / own_row.median)
