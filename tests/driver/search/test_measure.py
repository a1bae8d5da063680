"""Times of kernels become costs of layers and of conversions."""

from __future__ import annotations

from itertools import permutations

import pytest
from search_networks import make

from qcompiler.driver.search.attribute import Measured
from qcompiler.driver.search.measure import (
    alternating,
    changes_of,
    costs_of,
    plan_of,
    precisions_of,
    settled,
)
from qcompiler.driver.search.solve import allowed, evaluate

CHAIN = make(
    [("conv2d", [-1]), ("max_pool2d", [0]), ("conv2d", [1]), ("add", [2, 0]), ("conv2d", [3])], set()
)


def test_plans_that_are_measured_are_plans_that_can_be_followed() -> None:
    pairs = list(permutations(("int8", "bf16", "fp32"), 2))
    for network in (CHAIN, make([("add", [-1, -1]), ("add", [0, -1]), ("avg_pool2d", [1])], {1})):
        for first, second in pairs:
            for choice in (
                settled(network, [first] * len(network.sites)),
                alternating(network, first, second),
            ):
                assert allowed(network, choice)
                assert all(
                    p in precisions_of(site, (p,)) for p, site in zip(choice, network.sites, strict=True)
                )
    assert settled(CHAIN, ["fp32", "fp32", "fp32", "int8", "fp32"]) == ("fp32",) * 5
    assert alternating(CHAIN, "int8", "fp32") == ("int8", "int8", "fp32", "int8", "fp32")


def test_every_tensor_between_layers_is_converted_in_one_of_the_plans() -> None:
    for pair in (("int8", "fp32"), ("int8", "bf16")):
        converted = [changes_of(CHAIN, alternating(CHAIN, *p)) for p in permutations(pair)]  # type: ignore[arg-type]
        assert converted[0][0] == (("fp32", "int8"),)
        assert {t for plan in converted for t, changes in enumerate(plan) if changes} == {0, 1, 2, 3, 4, 5}


def test_a_tensor_may_need_several_conversions() -> None:
    network = make([("conv2d", [-1]), ("conv2d", [0]), ("add", [0, -1])], {1})
    assert changes_of(network, ("int8", "bf16", "fp32")) == [
        (("fp32", "int8"),), (("int8", "bf16"), ("int8", "fp32")), (("bf16", "fp32"),), (),
    ]  # fmt: skip


def test_what_a_layer_takes_longer_at_a_border_is_the_border_s_cost() -> None:
    chain = make([("conv2d", [-1]), ("conv2d", [0])], set())
    choices = [("int8", "int8"), ("fp32", "fp32"), ("int8", "fp32"), ("fp32", "int8")]
    measured = [
        Measured({0: 1.0, 1: 2.0}, {0: 0.5}, 4.0),
        Measured({0: 5.0, 1: 6.0}, {}, 11.5),
        Measured({0: 1.0, 1: 6.75}, {0: 0.5, 1: 0.25}, 9.0),
        Measured({0: 5.0, 1: 1.5}, {1: 0.125}, 7.125),
    ]
    noise = [{"int8": 0.1, "fp32": 0.0}] * 2
    costs = costs_of(chain, ("int8", "fp32"), choices, measured, noise)  # type: ignore[arg-type]
    assert costs.seconds == ({"int8": 1.0, "fp32": 5.0}, {"int8": 2.0, "fp32": 6.0})
    assert costs.changes[0] == {("fp32", "int8"): 0.5}
    assert costs.changes[1] == {("int8", "fp32"): 1.0, ("fp32", "int8"): 0.0}  # a gain is noise, and no cost
    assert costs.fixed == 0.5
    assert evaluate(chain, costs, ("int8", "fp32")).seconds == pytest.approx(9.0)


def test_a_plan_names_layers_and_not_what_moves_values() -> None:
    plan = plan_of(CHAIN, ("int8", "int8", "fp32", "int8", "fp32"))
    assert plan.layers == {"s0": "int8", "s2": "fp32", "s3": "int8", "s4": "fp32"}
