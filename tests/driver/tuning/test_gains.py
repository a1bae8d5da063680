"""The task that promises most is next."""

from __future__ import annotations

import pytest

from qcompiler.driver.tuning.gains import Progress, expected, left


def task(*scores: float, weight: int = 1, work: float = 1.0, operator: str = "conv2d") -> Progress:
    return Progress(operator, weight, work, list(scores))


def test_layers_that_share_a_task_count() -> None:
    one, four = task(1.0), task(1.0, weight=4)
    assert expected(four, [one, four]) == pytest.approx(4 * expected(one, [one, four]))


def test_a_task_far_behind_the_others_of_its_operator_promises_more() -> None:
    fast, slow, other = task(1.0, work=4.0), task(1.0, work=1.0), task(1.0, work=1.0, operator="dense")
    tasks = [fast, slow, other]
    assert expected(slow, tasks) > expected(fast, tasks)
    assert expected(other, tasks) == pytest.approx(expected(fast, tasks))


def test_promises_shrink_with_rounds_and_grow_with_gains() -> None:
    fresh, tried, gaining = task(1.0), task(1.0, 1.0, 1.0, 1.0), task(1.6, 1.4, 1.2, 1.0)
    tasks = [fresh, tried, gaining]
    assert expected(fresh, tasks) > expected(tried, tasks)
    assert expected(gaining, tasks) > expected(tried, tasks)


def test_nothing_is_expected_of_an_exhausted_task() -> None:
    done = task(2.0, 1.0)
    done.exhausted = True
    assert expected(done, [done]) == 0


def test_shares_are_of_the_whole_model() -> None:
    tasks = [task(1.0, weight=2), task(2.0)]
    assert sum(left(tasks)) == pytest.approx(sum(expected(t, tasks) for t in tasks) / 4.0)
