"""Which task to work on next: the one whose next round is expected to save most of the model's time.

The form is that of Ansor's task scheduler (Zheng et al., OSDI 2020, section 6): a task's rate of gain is a mean of what its
last rounds gained and of a guess at what is possible, which looks at similar tasks. Ansor's guess, that everything
may be gained, is replaced: here the first schedule is already a good one, and tuning ought to end by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

WINDOW = 3
"""Rounds that the recent gain is taken over."""

RECENT = 0.5
"""Share of the recent gain in the estimate; the rest is the optimistic guess."""

HOPE = 0.5
"""Share of its distance to the fastest task of its operator that a task is hoped to make up."""

LEAST_DISTANCE = 0.05
"""The distance that even the fastest task is taken to have, as a share of its time."""


@dataclass
class Progress:
    """How far one task is.

    Attributes:
        operator: its operator class.
        weight: how often a run of the model runs it.
        work: its multiply-accumulates or other measure of size; compared within one operator class.
        scores: the best score after each round, in seconds; the first is the default's.
        exhausted: nothing is left to try.
    """

    operator: str
    weight: int
    work: float
    scores: list[float] = field(default_factory=list)
    exhausted: bool = False

    @property
    def best(self) -> float:
        return self.scores[-1]

    @property
    def seconds(self) -> float:
        """Its share of the model's time."""
        return self.weight * self.best


def expected(task: Progress, others: Sequence[Progress]) -> float:
    """Seconds of the model that the next round on ``task`` is expected to save."""
    if task.exhausted:
        return 0.0
    rounds = len(task.scores)
    back = task.scores[-1 - min(WINDOW, rounds - 1)]
    recent = (back - task.best) / max(1, min(WINDOW, rounds - 1))
    fastest = max((o.work / o.best for o in others if o.operator == task.operator and o.work), default=0.0)
    distance = task.best - task.work / fastest if fastest else 0.0
    guess = HOPE * max(distance, LEAST_DISTANCE * task.best) / rounds
    return task.weight * (RECENT * recent + (1 - RECENT) * guess)


def left(tasks: Sequence[Progress]) -> list[float]:
    """For each task, the share of the model's time that its next round is expected to save."""
    total = sum(t.seconds for t in tasks)
    return [expected(t, tasks) / total for t in tasks]
