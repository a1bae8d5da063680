from __future__ import annotations

from typing import Any

import numpy as np
from qc_modules import assert_equal, const, make, operators
from tvm import relax

from qcompiler import operators as qc
from qcompiler.passes.expose_padding import ExposePadding
from qcompiler.targets import registry
from qcompiler.targets.borders import Borders

TARGET = registry.resolve("x86-avx2")
IMAGE = ((1, 6, 7, 4), "uint8")


def always(call: relax.Call, target: Any) -> bool:
    return True


def never(call: relax.Call, target: Any) -> bool:
    return False


BORDERS = Borders(frozenset({"qc.conv2d"}), always, never)


def conv(x: relax.Expr, padding: list[int], layout: str = "NHWC") -> relax.Call:
    args = [
        x,
        const(np.ones((4, 4, 3, 3), np.int8)),
        const(np.zeros(4, np.int32)),
        const(np.ones(4, np.float32)),
    ]
    return qc.call(
        "qc.conv2d", args, strides=[1, 1], padding=padding, dilation=[1, 1], groups=1, layout=layout, pad_value=9,
        zero_point=0, lo=0, hi=255, residual_shift=0, out_dtype="uint8", accumulator_bound=99999,
    )  # fmt: skip


def chain(padding: list[int], **options: Any) -> Any:
    return make(lambda e, x: conv(e(conv(x, [0, 0, 0, 0], **options)), padding, **options), IMAGE)


def test_padding_behind_a_convolution_becomes_an_operator() -> None:
    def expected(emit, x):  # type: ignore[no-untyped-def]
        y = emit(conv(x, [0, 0, 0, 0]))
        padded = emit(relax.op.nn.pad(y, [0, 0, 1, 3, 2, 4, 0, 0], "constant", 9.0))
        return conv(padded, [0, 0, 0, 0])

    after = ExposePadding(TARGET, BORDERS)(chain([1, 2, 3, 4]))
    assert_equal(after, make(expected, IMAGE))


def test_padding_that_the_target_needs_is_exposed_whoever_wrote_the_input() -> None:
    after = ExposePadding(TARGET, Borders(frozenset(), never, always))(
        make(lambda e, x: conv(x, [1, 1, 1, 1]), IMAGE)
    )
    assert operators(after) == ["relax.nn.pad", "qc.conv2d"]


def test_must_not_fire() -> None:
    unwanted = Borders(BORDERS.producers, never, never)
    no_producer = Borders(frozenset(), always, never)
    both = make(lambda e, x: (lambda y: (y, conv(y, [1, 1, 1, 1])))(e(conv(x, [0, 0, 0, 0]))), IMAGE)
    for module, borders in (
        (chain([0, 0, 0, 0]), BORDERS),
        (chain([1, 1, 1, 1]), unwanted),
        (chain([1, 1, 1, 1]), no_producer),
        (chain([1, 1, 1, 1], layout="NCHW"), BORDERS),
        (make(lambda e, x: conv(x, [1, 1, 1, 1]), IMAGE), BORDERS),
        (both, BORDERS),
    ):
        after = ExposePadding(TARGET, borders)(module)
        assert "relax.nn.pad" not in operators(after)
        assert operators(after) == operators(module)
