"""Times of kernels become costs of layers and of conversions."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_networks import make

from qcompiler.driver.search.measure import (
    Measured,
    alternating,
    attributed,
    calibrated,
    changes_of,
    costs_of,
    plan_of,
    settled,
)
from qcompiler.driver.search.solve import allowed, evaluate

CHAIN = make(
    [("conv2d", [-1]), ("max_pool2d", [0]), ("conv2d", [1]), ("add", [2, 0]), ("conv2d", [3])], set()
)


def test_plans_that_are_measured_are_plans_that_can_be_followed() -> None:
    for network in (CHAIN, make([("add", [-1, -1]), ("add", [0, -1]), ("avg_pool2d", [1])], {1})):
        for wanted in ("int8", "fp32"):
            whole = settled(network, [wanted] * len(network.sites))  # type: ignore[list-item]
            assert allowed(network, whole)
            assert allowed(network, alternating(network, wanted))  # type: ignore[arg-type]
    assert settled(CHAIN, ["fp32", "fp32", "fp32", "int8", "fp32"]) == ("fp32",) * 5
    assert alternating(CHAIN, "int8") == ("int8", "int8", "fp32", "int8", "fp32")


def test_every_tensor_between_layers_is_converted_in_one_of_the_plans() -> None:
    converted = [changes_of(CHAIN, alternating(CHAIN, p)) for p in ("int8", "fp32")]  # type: ignore[arg-type]
    assert converted[0][0] == ("fp32", "int8")
    assert {t for plan in converted for t, change in enumerate(plan) if change} == {0, 1, 2, 3, 4, 5}


def test_kernels_are_times_of_what_they_compute() -> None:
    kernels = [
        ("quantize", ("border0__",)),
        ("conv", ("site0__",)),
        ("fused", ("border1__", "site2__", "site2__1")),
        ("conv", ("site4__12",)),
        ("reshape", ("view",)),
    ]
    calls = [("quantize", 1.0), ("conv", 2.0), ("fused", 4.0), ("conv", 8.0), ("reshape", 16.0)]
    found = attributed(calls, kernels, 40.0)
    assert found == Measured({0: 2.0, 2: 4.0, 4: 8.0}, {0: 1.0}, 40.0)


def test_times_of_calls_add_up_to_the_run() -> None:
    # The clock takes half a second a call.
    assert calibrated([1.5, 3.5, 0.5], 4.0) == [1.0, 3.0, 0.0]
    # What the machine does between calls is the calls'.
    assert calibrated([1.0, 3.0], 5.0) == [1.5, 3.5]
    # A call is never credited with less than nothing: the others bear what it cannot.
    assert calibrated([0.25, 2.0, 3.0], 3.0) == [0.0, 1.0, 2.0]
    assert calibrated([], 1.0) == []


@given(st.lists(st.floats(1e-7, 1e-3), min_size=1, max_size=50), st.floats(1e-6, 1e-2))
def test_calibrated_times_keep_their_order_and_sum(times: list[float], run: float) -> None:
    found = calibrated(times, run)
    assert sum(found) == pytest.approx(run)
    assert all(seconds >= 0 for seconds in found)
    assert sorted(found) == [found[k] for k in sorted(range(len(times)), key=times.__getitem__)]


def test_what_a_layer_takes_longer_at_a_border_is_the_border_s_cost() -> None:
    chain = make([("conv2d", [-1]), ("conv2d", [0])], set())
    choices = [("int8", "int8"), ("fp32", "fp32"), ("int8", "fp32"), ("fp32", "int8")]
    measured = [
        Measured({0: 1.0, 1: 2.0}, {0: 0.5}, 4.0),
        Measured({0: 5.0, 1: 6.0}, {}, 11.5),
        Measured({0: 1.0, 1: 6.75}, {0: 0.5, 1: 0.25}, 9.0),
        Measured({0: 5.0, 1: 1.5}, {1: 0.125}, 7.125),
    ]
    costs = costs_of(chain, choices, measured, [{"int8": 0.1, "fp32": 0.0}] * 2)  # type: ignore[arg-type]
    assert costs.seconds == ({"int8": 1.0, "fp32": 5.0}, {"int8": 2.0, "fp32": 6.0})
    assert costs.changes[0] == {("fp32", "int8"): 0.5}
    assert costs.changes[1] == {("int8", "fp32"): 1.0, ("fp32", "int8"): 0.0}  # a gain is noise, and no cost
    assert costs.fixed == 0.5
    assert evaluate(chain, costs, ("int8", "fp32")).seconds == pytest.approx(9.0)


def test_a_plan_names_layers_and_not_what_moves_values() -> None:
    plan = plan_of(CHAIN, ("int8", "int8", "fp32", "int8", "fp32"))
    assert plan.layers == {"s0": "int8", "s2": "fp32", "s3": "int8", "s4": "fp32"}
