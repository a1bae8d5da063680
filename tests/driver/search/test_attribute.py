"""Which kernel is whose, and what its time is without the clock's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_networks import make

from qcompiler.driver.search.attribute import Measured, attributed, calibrated

CHAIN = make(
    [("conv2d", [-1]), ("max_pool2d", [0]), ("conv2d", [1]), ("add", [2, 0]), ("conv2d", [3])], set()
)


def test_kernels_are_times_of_what_they_compute() -> None:
    kernels = [
        ("quantize", ("border0__",)),
        ("conv", ("site0__",)),
        ("fused", ("border1__", "site2__", "site2__1")),
        ("conv", ("site4__12",)),
        ("reshape", ("view",)),
        ("bits", ("site0__3_bits4",)),
        ("bits", ("t-1_bits", "border1__7_bits")),
        ("bits", ("t-1_bits",)),
    ]
    calls = [("quantize", 1.0), ("conv", 2.0), ("fused", 4.0), ("conv", 8.0), ("reshape", 16.0)]
    calls += [("bits", 32.0), ("bits", 64.0), ("bits", 128.0)]
    found = attributed(CHAIN, calls, kernels, 40.0)
    assert found == Measured({0: 2.0, 2: 4.0, 4: 8.0}, {0: 129.0, 1: 96.0}, 40.0)


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
