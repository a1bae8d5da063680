"""Tunes the kernels of a model, and keeps what it measures."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import tvm

from qcompiler.config import TuneConfig
from qcompiler.driver.kernels import register
from qcompiler.driver.tuning import cost, gains
from qcompiler.driver.tuning.decisions import TraceJson, key, plain
from qcompiler.driver.tuning.fleet import closing
from qcompiler.driver.tuning.log import Choice, Record, TuningLog, mean
from qcompiler.driver.tuning.search import Candidate, Search
from qcompiler.driver.tuning.tasks import Prepared, Task, file_name, prepare
from qcompiler.driver.tuning.trial import Build, Run, Timing
from qcompiler.driver.tuning.writer import LogWriter
from qcompiler.errors import TuningError
from qcompiler.runtime.manifest import OptimizationRecord
from qcompiler.targets.base import GpuTarget, Target

REAL_GAIN = 0.02
"""Share of the default's time that a schedule must save to take its place: less may be noise."""

FINALISTS = 3
"""Schedules of a kernel that are compared with the default at the end."""

FINAL_ROUNDS = 5
"""Turns of that comparison."""

Say = Callable[[str], None]

log = logging.getLogger(__name__)


class Fleet(Protocol):
    """Builds candidates, and runs them."""

    def build(self, jobs: Sequence[Build]) -> list[str | None]: ...
    def run(self, jobs: Sequence[Run]) -> list[list[Timing]]: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class TunedKernel:
    """What tuning found for one kernel.

    Attributes:
        name: the kernel.
        layers: the layers that run it.
        trials: schedules measured in this run.
        default_seconds: the default's time of one run for each number of threads, times threads.
        seconds: the same of the schedule that is kept.
        gain: share of the default's time that it saves; 0 where the default is kept.
    """

    name: str
    layers: tuple[str, ...]
    trials: int
    default_seconds: tuple[float, ...]
    seconds: tuple[float, ...]
    gain: float


@dataclass(frozen=True)
class Tuned:
    """What a run of tuning did.

    Attributes:
        log: the log's folder.
        target: name of the target.
        threads: numbers of threads that were measured.
        trials: schedules measured.
        failed: of them, those that could not be built or run.
        wrong: of them, those whose output was wrong.
        reused: schedules that an earlier run had measured.
        seconds: time taken.
        kernels: what was found.
        gain: share of the kernels' time, all their layers together, that is saved.
        reason: why it ended, in words.
        optimizations: what was tried to lower the error when the model was quantized.
    """

    log: Path
    target: str
    threads: tuple[int, ...]
    trials: int
    failed: int
    wrong: int
    reused: int
    seconds: float
    kernels: tuple[TunedKernel, ...]
    gain: float
    reason: str
    optimizations: tuple[OptimizationRecord, ...] = ()


@dataclass
class _State:
    """A task in work."""

    task: Task
    search: Search
    progress: gains.Progress
    files: Prepared
    records: list[Record] = field(default_factory=list)
    trials: int = 0
    chosen: Choice | None = None
    default_fault: str | None = None
    batches: int = 0

    @property
    def known(self) -> bool:
        return bool(self.progress.scores)


def tune_tasks(
    tasks: Sequence[Task],
    target: Target,
    tvm_target: tvm.target.Target,
    writer: LogWriter,
    make_fleet: Callable[[], Fleet],
    threads: tuple[int, ...],
    config: TuneConfig,
    say: Say,
) -> Tuned:
    """Searches schedules for ``tasks``, and writes them into the log as they are measured.

    Raises:
        TuningError: nothing can be measured.
    """
    with tempfile.TemporaryDirectory(prefix="qcompiler-tune-") as scratch, closing(make_fleet) as fleet:
        run = _Tuning(target, tvm_target, writer, fleet, threads, config, say, Path(scratch))
        return run.run(tasks)


class _Tuning:
    def __init__(
        self, target: Target, tvm_target: tvm.target.Target, writer: LogWriter, fleet: Fleet,
        threads: tuple[int, ...], config: TuneConfig, say: Say, scratch: Path,
    ) -> None:  # fmt: skip
        self.target, self.tvm_target, self.writer, self.fleet = target, tvm_target, writer, fleet
        self.threads, self.config, self.say, self.scratch = threads, config, say, scratch
        self.gpu = target if isinstance(target, GpuTarget) else None
        self.start = time.monotonic()
        register(target)  # records of other models, too, are replayed
        self.model = cost.make()
        self.config_json: dict[str, Any] = plain(tvm_target.export())
        self.trials = self.failed = self.wrong = self.reused = 0

    def run(self, tasks: Sequence[Task]) -> Tuned:
        before = self.writer.read()
        for fault in before.faults:
            log.warning("%s", fault)
        states = [self._state(task, index, before) for index, task in enumerate(tasks)]
        if self.reused:
            self.say(f"{self.reused} schedules were measured before")
        self._measure_defaults(states)
        working = [s for s in states if s.known]
        if not working:
            raise TuningError(
                f"no default schedule can be measured; the first one: {states[0].default_fault}"
            )
        reason = self._search(working)
        self._settle(working)
        learned = cost.learn(self.writer.read(), self.tvm_target)
        if learned is not None:
            self.writer.save_model(learned)
        return self._result(working, reason)

    def _state(self, task: Task, index: int, before: TuningLog) -> _State:
        search = Search(task, self.tvm_target, self.model, self.config.batch, self.config.seed + index)
        progress = gains.Progress(task.workload.operator, task.weight, float(task.macs))
        files = prepare(task, self.scratch / f"{index:03d}-{file_name(task.name)}", self.target.l2_bytes)
        state = _State(task, search, progress, files)
        stored = before.find(task.neutral.module)
        if stored is not None:
            state.records = list(before.records.get(stored, ()))
            state.chosen = before.choices.get(stored)
            self.reused += search.remember(state.records)
            default = self._times_of(state, search.default.trace)
            if default is not None:
                best = min(r.score for r in state.records)
                # The default was a round of its own; the rest came a batch at a time.
                rounds = -(-(len(state.records) - 1) // self.config.batch)
                progress.scores = [mean(default), *[best] * rounds]
        return state

    def _measure_defaults(self, states: Sequence[_State]) -> None:
        """The first candidate of every task: what it must beat, and what the tasks weigh."""
        for state in states:
            if state.known:
                continue
            candidate = state.search.propose_default() or state.search.default
            (timing,) = self._measure(state, [candidate])
            if timing.fault is not None:
                state.default_fault = timing.fault
                log.error(
                    "the default schedule of %s failed: %s; it is left out", state.task.name, timing.fault
                )
            else:
                state.progress.scores = [mean(timing.seconds)]

    def _search(self, states: Sequence[_State]) -> str:
        progress = [s.progress for s in states]
        while True:
            expected = gains.left(progress)
            if all(p.exhausted for p in progress):
                return "all schedules of all kernels have been measured"
            if sum(expected) < self.config.min_gain:
                return f"less than {100 * self.config.min_gain:g} % is expected to be gained"
            if self.trials >= self.config.trials:
                return f"{self.config.trials} trials are used up"
            if self.config.minutes is not None and time.monotonic() - self.start > 60 * self.config.minutes:
                return f"{self.config.minutes:g} minutes are over"
            state = states[max(range(len(states)), key=expected.__getitem__)]
            self._round(state)
            self._tell(state, states)

    def _round(self, state: _State) -> None:
        candidates = state.search.propose()[: self.config.trials - self.trials]
        if not candidates:
            state.progress.exhausted = True
            return
        self._measure(state, candidates)
        best = min((r.score for r in state.records), default=state.progress.best)
        state.progress.scores.append(min(best, state.progress.best))

    def _tell(self, state: _State, states: Sequence[_State]) -> None:
        shares = gains.left([s.progress for s in states])
        left = shares[[s is state for s in states].index(True)]
        first, best = state.progress.scores[0], state.progress.best
        saved = 1 - sum(s.progress.seconds for s in states) / sum(
            s.progress.weight * s.progress.scores[0] for s in states
        )
        self.say(
            f"{self.trials}/{self.config.trials} {state.task.name}: best {1e6 * best:.1f} us, "
            f"default {1e6 * first:.1f} us ({100 * (best / first - 1):+.1f} %)"
            + (", searched through" if state.progress.exhausted else f", expected gain {100 * left:.2f} %")
            + f"; model {-100 * saved:+.1f} %, expected {100 * sum(shares):.2f} %"
        )

    def _measure(self, state: _State, candidates: Sequence[Candidate]) -> list[Timing]:
        """Builds, checks, times and records candidates."""
        libraries = self._build(state, [c.trace for c in candidates])
        runs = [self._run(state, (lib,)) for lib, fault in libraries if fault is None]
        times = iter(self.fleet.run(runs))
        timings = [
            Timing(fault=f"it cannot be built: {fault}") if fault is not None else next(times)[0]
            for _, fault in libraries
        ]
        for candidate, timing in zip(candidates, timings, strict=True):
            self.trials += 1
            state.trials += 1
            self._note(state, candidate, timing)
        state.search.tell(candidates, [t.seconds if t.fault is None else None for t in timings])
        return [Timing(self._scaled(t), t.fault, t.wrong) for t in timings]

    def _note(self, state: _State, candidate: Candidate, timing: Timing) -> None:
        if timing.fault is None:
            record = Record(candidate.trace, self._scaled(timing))
            state.records.append(record)
            self.writer.append(state.task.neutral.module, record)
            return
        self.failed += 1
        self.wrong += timing.wrong
        level = logging.ERROR if timing.wrong else logging.WARNING
        log.log(
            level, "a schedule of %s %s and is not kept: %s; its decisions: %s", state.task.name,
            "is wrong" if timing.wrong else "failed", timing.fault, candidate.trace[1],
        )  # fmt: skip

    def _scaled(self, timing: Timing) -> tuple[float, ...]:
        """Seconds times threads: what the cores together spend, so that one number of threads counts like another."""
        return tuple(s * t for s, t in zip(timing.seconds, self.threads, strict=False))

    def _build(self, state: _State, traces: Sequence[TraceJson]) -> list[tuple[str, str | None]]:
        state.batches += 1
        jobs = [
            Build(
                state.files.module, trace, state.files.copies, self.config_json,
                str(state.files.folder / f"{state.batches:04d}-{k:03d}.so"), self.gpu,
            )
            for k, trace in enumerate(traces)
        ]  # fmt: skip
        return [(job.library, fault) for job, fault in zip(jobs, self.fleet.build(jobs), strict=True)]

    def _run(self, state: _State, libraries: tuple[str, ...], rounds: int = 1) -> Run:
        return Run(
            libraries, state.files.data, state.files.copies, self.threads, rounds, self.gpu is not None
        )

    def _settle(self, states: Sequence[_State]) -> None:
        """Compares the best schedules of each kernel with its default, in turns, and sets what is used."""
        for state in states:
            if state.trials == 0 and state.chosen is not None:
                continue
            default = state.search.default.trace
            rivals = {key(default): default}
            if state.chosen is not None:
                rivals.setdefault(key(state.chosen.trace), state.chosen.trace)
            for record in sorted(state.records, key=lambda r: r.score):
                if len(rivals) <= FINALISTS:
                    rivals.setdefault(key(record.trace), record.trace)
            if len(rivals) == 1:  # nothing to compare it with
                measured = self._times_of(state, default)
                assert measured is not None
                state.chosen = Choice(default, measured, measured)
                self.writer.choose(state.task.neutral.module, state.chosen)
                continue
            traces = list(rivals.values())
            built = self._build(state, traces)
            usable = [k for k, (_, fault) in enumerate(built) if fault is None]
            (timings,) = self.fleet.run([self._run(state, tuple(built[k][0] for k in usable), FINAL_ROUNDS)])
            timed = {k: self._scaled(t) for k, t in zip(usable, timings, strict=True) if t.fault is None}
            if 0 not in timed:
                log.warning(
                    "the best schedules of %s cannot be compared; the fastest record is used", state.task.name
                )
                continue
            best = min(timed, key=lambda k: mean(timed[k]))
            if mean(timed[best]) > (1 - REAL_GAIN) * mean(timed[0]):
                best = 0
            state.chosen = Choice(traces[best], timed[best], timed[0])
            self.writer.choose(state.task.neutral.module, state.chosen)

    def _times_of(self, state: _State, trace: TraceJson) -> tuple[float, ...] | None:
        wanted = key(trace)
        return next((r.seconds for r in state.records if key(r.trace) == wanted), None)

    def _result(self, states: Sequence[_State], reason: str) -> Tuned:
        kernels = []
        for state in states:
            chosen = state.chosen
            if chosen is not None:
                kernels.append(
                    TunedKernel(
                        state.task.name, state.task.layers, state.trials, chosen.default_seconds, chosen.seconds,
                        chosen.gain,
                    )
                )  # fmt: skip
        default = sum(len(k.layers) * mean(k.default_seconds) for k in kernels)
        now = sum(len(k.layers) * mean(k.seconds) for k in kernels)
        return Tuned(
            self.writer.folder, self.target.name, self.threads, self.trials, self.failed, self.wrong, self.reused,
            time.monotonic() - self.start, tuple(kernels), 1 - now / default if default else 0.0, reason,
        )  # fmt: skip
