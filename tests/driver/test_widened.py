"""Weights that are widened at each use are told of where that takes longer than float32 weights."""

from __future__ import annotations

import pytest

from qcompiler.driver.widened import MANY_USES, describe_widened
from qcompiler.runtime.manifest import LayerRecord

NARROW = "float32 x float16 -> float32"


def layer(arithmetic: str | None, *shape: int, operator: str = "float_dense", macs: int = 100) -> LayerRecord:
    return LayerRecord("layer", operator, "float32", shape, macs=macs, arithmetic=arithmetic)


@pytest.mark.parametrize(
    ("layers", "told"),
    [
        ([layer(NARROW, MANY_USES, 8)], "the float16 weights of 1 layers"),
        ([layer(NARROW, MANY_USES - 1, 8)], None),
        ([layer(NARROW, 1, 7, 7, 8, operator="float_conv2d")], "100% of their multiplications"),
        ([layer("float32 x int8 -> float32", 48, 8)], "the int8 weights"),
        ([layer("float32 x float32 -> float32", 48, 8)], None),
        ([layer("bfloat16 x bfloat16 -> float32", 48, 8)], None),
        ([layer("uint8 x int8 -> int32", 48, 8, operator="dense")], None),
        ([layer(NARROW, 48, 8), layer(NARROW, 1, 8, macs=101)], None),
        ([layer(NARROW, 48, 8), layer(NARROW, 1, 8, macs=100)], "of 2 layers are widened"),
        ([], None),
    ],
)
def test_what_is_told(layers: list[LayerRecord], told: str | None) -> None:
    found = describe_widened(layers)
    assert found is None if told is None else told in (found or "")
