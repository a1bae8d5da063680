"""The search of one task: MetaSchedule's evolutionary search over the sketches of a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tvm
import tvm_ffi
from tvm.s_tir import meta_schedule as ms

from qcompiler.driver.tuning import light
from qcompiler.driver.tuning.decisions import TraceJson, fit, to_json
from qcompiler.driver.tuning.log import Record
from qcompiler.driver.tuning.tasks import Task
from qcompiler.targets.workload import sketched

POPULATION = 64
GENERATIONS = 2
"""Spaces have tens to hundreds of schedules, and the search goes on after every round: small and few are enough."""

EMPTY_ROUNDS = 2
"""Rounds without a new schedule after which the space counts as searched through."""


@dataclass(frozen=True)
class Candidate:
    """A schedule to measure.

    Attributes:
        trace: the schedule.
        measured: MetaSchedule's object.
    """

    trace: TraceJson
    measured: Any


class Search:
    """Proposes schedules of one task, and learns from their times.

    Attributes:
        default: the schedule without tuning.
    """

    def __init__(self, task: Task, tvm_target: tvm.target.Target, model: Any, batch: int, seed: int) -> None:
        light.keep_out()
        self.task = task
        self.model = model
        self._target = tvm_target
        self._module = task.neutral.module
        self._seen: set[int] = set()
        self._database = ms.database.MemoryDatabase()
        sketches = [sketched(task.neutral, k) for k in range(len(task.neutral.sketches))]
        self.default = Candidate(
            to_json(sketches[0].trace), ms.search_strategy.MeasureCandidate(sketches[0], [])
        )
        space = ms.space_generator.ScheduleFn(
            lambda _: sketches, sch_rules=[], postprocs=[], mutator_probs={ms.mutator.MutateTileSize(): 1.0}
        )
        strategy = ms.search_strategy.EvolutionarySearch(
            population_size=POPULATION, init_measured_ratio=0.2, init_min_unmeasured=POPULATION // 2, max_fail_count=5,
            genetic_num_iters=GENERATIONS, genetic_mutate_prob=0.85, genetic_max_fail_count=10, eps_greedy=0.1,
        )  # fmt: skip
        self._context = ms.TuneContext(
            self._module, target=tvm_target, space_generator=space, search_strategy=strategy, task_name=task.name,
            rand_state=seed, num_threads=1,
        )  # fmt: skip
        self._context.pre_tuning(2**30, batch, database=self._database, cost_model=model)
        self._token = self._database.commit_workload(self._module)

    def remember(self, records: Sequence[Record]) -> int:
        """Takes over what was measured before; how many of it are schedules of these sketches."""
        candidates, results = [], []
        for record in records:
            fitted = fit(self.task.neutral, record.trace)
            if fitted is None or not fitted.exact or not self._first(fitted.schedule):
                continue
            candidates.append(ms.search_strategy.MeasureCandidate(fitted.schedule, []))
            results.append(ms.runner.RunnerResult(list(record.seconds), None))
        if candidates:
            self._learn(candidates, results)
        return len(candidates)

    def propose_default(self) -> Candidate | None:
        """The default, unless it was measured before."""
        return self.default if self._first(self.default.measured.sch) else None

    def propose(self) -> list[Candidate]:
        """New schedules, none twice; an empty list when none is left."""
        for _ in range(EMPTY_ROUNDS):
            proposed = self._context.generate_measure_candidates()
            if proposed is None:
                break
            new = [m for m in proposed if self._first(m.sch)]
            if new:
                return [Candidate(to_json(m.sch.trace), m) for m in new]
        return []

    def tell(self, candidates: Sequence[Candidate], seconds: Sequence[tuple[float, ...] | None]) -> None:
        """The times of candidates; None for one that failed."""
        results = [
            ms.runner.RunnerResult(None if s is None else list(s), "failed" if s is None else None)
            for s in seconds
        ]
        self._learn([c.measured for c in candidates], results)

    def _learn(self, candidates: list[Any], results: list[Any]) -> None:
        for candidate, result in zip(candidates, results, strict=True):
            if result.run_secs is not None:
                record = ms.database.TuningRecord(
                    candidate.sch.trace, self._token, result.run_secs, self._target, None
                )
                self._database.commit_tuning_record(record)
        self.model.update(self._context, candidates, results)
        self._context.notify_runner_results(candidates, results)

    def _first(self, sch: Any) -> bool:
        """Whether this schedule was not met before."""
        known = int(tvm_ffi.structural_hash(sch.mod))
        if known in self._seen:
            return False
        self._seen.add(known)
        return True
