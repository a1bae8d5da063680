"""The integer program against trying every plan."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_networks import make

from qcompiler.driver.search.measure import precisions_of
from qcompiler.driver.search.solve import Costs, Solution, allowed, cleanest, evaluate, fastest, front
from qcompiler.quantization.network import Network

KINDS = ("conv2d", "add", "max_pool2d", "avg_pool2d")


@st.composite
def problems(draw: st.DrawFn) -> tuple[Network, Costs]:
    sites = []
    for s in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(KINDS))
        count = 2 if kind == "add" else 1
        sites.append((kind, [draw(st.integers(-1, s - 1)) for _ in range(count)]))
    network = make(sites, draw(st.sets(st.integers(-1, len(sites) - 1))))
    tried = ("int8", "bf16", "fp32") if draw(st.booleans()) else ("int8", "fp32")
    time = st.integers(1, 20).map(float)
    may = [precisions_of(site, tried) for site in network.sites]  # type: ignore[arg-type]
    costs = Costs(
        tuple({p: draw(time) for p in own} for own in may),
        tuple(
            {p: 0.0 if s.moves or p == "fp32" else draw(time) / 1024 for p in own}
            for s, own in zip(network.sites, may, strict=True)
        ),
        tuple(
            {change: draw(st.integers(0, 9)) * 1.0 for change in itertools.permutations(tried, 2)}  # type: ignore[misc]
            for _ in network.tensors
        ),
        3.0,
    )
    return network, costs


def every(network: Network, costs: Costs) -> list[Solution]:
    choices = itertools.product(*costs.seconds)
    return [evaluate(network, costs, c) for c in choices if allowed(network, c)]


@settings(max_examples=60, deadline=None)
@given(problems())
def test_optima_are_those_of_all_plans(problem: tuple[Network, Costs]) -> None:
    network, costs = problem
    plans = every(network, costs)
    best = fastest(network, costs)
    assert best is not None
    assert allowed(network, best.choice)
    assert best.seconds == min(p.seconds for p in plans)
    bound = sorted(p.noise for p in plans)[len(plans) // 2]
    bounded = fastest(network, costs, bound)
    assert bounded is not None
    assert bounded.noise <= bound
    assert bounded.seconds == min(p.seconds for p in plans if p.noise <= bound)
    limit = sorted(p.seconds for p in plans)[len(plans) // 2]
    quiet = cleanest(network, costs, limit)
    assert quiet is not None
    assert quiet.seconds <= limit
    assert quiet.noise == min(p.noise for p in plans if p.seconds <= limit)


@settings(max_examples=30, deadline=None)
@given(problems())
def test_no_plan_of_the_front_is_beaten(problem: tuple[Network, Costs]) -> None:
    network, costs = problem
    plans = every(network, costs)
    found = front(network, costs, 12)
    assert [p.seconds for p in found] == sorted({p.seconds for p in found})
    for point in found:
        assert not any(p.seconds < point.seconds and p.noise <= point.noise for p in plans)
        assert not any(p.seconds <= point.seconds and p.noise < point.noise for p in plans)
    assert found[-1].noise == 0.0


def test_a_border_costs_once_however_many_read_it() -> None:
    network = make([("conv2d", [-1]), ("conv2d", [0]), ("conv2d", [0])], set())
    costs = Costs(
        ({"int8": 9.0, "fp32": 1.0}, *({"int8": 1.0, "fp32": 4.0},) * 2),
        ({"int8": 1.0, "fp32": 0.0},) * 3,
        ({("fp32", "int8"): 5.0, ("int8", "fp32"): 0.0},) * 4,
    )
    best = fastest(network, costs)
    assert best is not None
    assert (best.choice, best.seconds) == (("fp32", "int8", "int8"), 8.0)


def test_what_cannot_be_met_has_no_plan() -> None:
    network = make([("conv2d", [-1])], set())
    costs = Costs(({"int8": 1.0, "fp32": 2.0},), ({"int8": 0.5, "fp32": 0.0},), ({}, {}), 0.5)
    assert cleanest(network, costs, 1.4) is None
    assert cleanest(network, costs, 1.5) == Solution(("int8",), pytest.approx(1.5), 0.5)


def test_of_equally_fast_plans_the_least_noisy_is_taken() -> None:
    count = 8
    network = make([("conv2d", [-1])] * count, set())
    costs = Costs(
        ({"int8": 1.0, "fp32": 1.0},) * count,
        tuple({"int8": 0.1**k, "fp32": 0.0} for k in range(count)),
        ({},) * (count + 1),
        3.0,
    )
    best = fastest(network, costs)
    assert best is not None
    assert (best.seconds, best.noise) == (3.0 + count, 0.0)
    assert front(network, costs, 5) == [best]
