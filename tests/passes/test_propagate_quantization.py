from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from qc_modules import assert_equal, dq, make, operators, q
from tvm import relax

from qcompiler.operators import call
from qcompiler.passes.graph import bindings, dtype, op_name
from qcompiler.passes.propagate_quantization import PropagateQuantization

IMAGE = ((1, 4, 6, 6), "uint8")
FORMS: dict[str, Callable[[Any], Any]] = {
    "reshape": lambda x: relax.op.reshape(x, (1, 144)),
    "permute": lambda x: relax.op.permute_dims(x, [0, 2, 3, 1]),
    "slice": lambda x: relax.op.strided_slice(x, axes=[1], begin=[1], end=[3]),
    "broadcast": lambda x: relax.op.broadcast_to(x, (3, 4, 6, 6)),
    "tile": lambda x: relax.op.tile(x, (1, 2, 1, 1)),
    "upsample": lambda x: relax.op.image.resize2d(x, size=(12, 12), layout="NCHW", method="nearest_neighbor"),
    "reflect": lambda x: relax.op.nn.pad(x, [0, 0, 0, 0, 1, 1, 1, 1], "reflect"),
}


@pytest.mark.parametrize("form", FORMS)
def test_movement_works_on_bytes(form: str) -> None:
    before = make(lambda e, x: q(e(FORMS[form](e(dq(x, 0.5, 3)))), 0.5, 3), IMAGE)
    expected = make(lambda e, x: FORMS[form](x), IMAGE)
    after = PropagateQuantization()(before)
    assert operators(after) == operators(expected)
    assert all(dtype(b.value) == "uint8" for b in bindings(after) if op_name(b.value))


@pytest.mark.parametrize("form", ["reshape", "permute", "slice", "broadcast"])
def test_quantize_moves_up_to_the_operator_it_belongs_to(form: str) -> None:
    before = make(lambda e, x: q(e(FORMS[form](e(relax.op.exp(e(dq(x, 0.5, 3)))))), 0.1, 9), IMAGE)
    expected = make(lambda e, x: FORMS[form](e(q(e(relax.op.exp(e(dq(x, 0.5, 3)))), 0.1, 9))), IMAGE)
    assert_equal(PropagateQuantization()(before), expected)


@pytest.mark.parametrize("ceil", [False, True])
def test_max_pool_takes_the_greatest_byte(ceil: bool) -> None:
    def before(emit, x):  # type: ignore[no-untyped-def]
        pooled = relax.op.nn.max_pool2d(
            emit(dq(x, 0.5, 3)), pool_size=(3, 3), strides=(2, 2), padding=(1, 1, 1, 1), ceil_mode=ceil
        )
        return q(emit(pooled), 0.5, 3)

    size = 4 if ceil else 3
    expected = make(
        lambda e, x: call(
            "qc.max_pool2d", [x], pool_size=[3, 3], strides=[2, 2], padding=[1, 1, 1, 1], dilation=[1, 1],
            layout="NCHW", out_size=[size, size],
        ),
        IMAGE,
    )  # fmt: skip
    assert_equal(PropagateQuantization()(make(before, IMAGE)), expected)


def test_padding_with_zero_pads_with_the_zero_point() -> None:
    def before(emit, x):  # type: ignore[no-untyped-def]
        return q(
            emit(relax.op.nn.pad(emit(dq(x, 0.5, 3)), [0, 0, 0, 0, 1, 1, 1, 1], "constant", 0.0)), 0.5, 3
        )

    after = PropagateQuantization()(make(before, IMAGE))
    assert operators(after) == ["relax.nn.pad"]
    (pad,) = (b.value for b in bindings(after) if op_name(b.value))
    assert dtype(pad) == "uint8"
    assert float(pad.attrs.pad_value) == 3


def test_padding_with_what_has_no_byte_stays_in_float() -> None:
    def before(emit, x):  # type: ignore[no-untyped-def]
        return q(
            emit(relax.op.nn.pad(emit(dq(x, 0.5, 3)), [0, 0, 0, 0, 1, 1, 1, 1], "constant", 0.3)), 0.5, 3
        )

    module = make(before, IMAGE)
    assert_equal(PropagateQuantization()(module), module)


def test_concat_of_equal_scales_joins_bytes() -> None:
    before = make(
        lambda e, a, b: q(e(relax.op.concat([e(dq(a, 0.5, 3)), e(dq(b, 0.5, 3))], 1)), 0.5, 3), IMAGE, IMAGE
    )
    expected = make(lambda e, a, b: relax.op.concat([a, b], 1), IMAGE, IMAGE)
    assert_equal(PropagateQuantization()(before), expected)


def test_concat_of_unequal_scales_requantizes_what_differs() -> None:
    before = make(
        lambda e, a, b: q(e(relax.op.concat([e(dq(a, 0.5, 3)), e(dq(b, 0.7, 3))], 1)), 0.5, 3), IMAGE, IMAGE
    )
    expected = make(lambda e, a, b: relax.op.concat([a, e(q(e(dq(b, 0.7, 3)), 0.5, 3))], 1), IMAGE, IMAGE)
    assert_equal(PropagateQuantization()(before), expected)


def test_split_splits_bytes() -> None:
    def before(emit, x):  # type: ignore[no-untyped-def]
        parts = emit(relax.op.split(emit(dq(x, 0.5, 3)), 2, axis=1))
        halves = [emit(q(emit(relax.TupleGetItem(parts, k)), 0.5, 3)) for k in (1, 0)]
        return relax.op.concat(halves, 1)

    def expected(emit, x):  # type: ignore[no-untyped-def]
        parts = emit(relax.op.split(x, 2, axis=1))
        halves = [emit(relax.TupleGetItem(parts, k)) for k in (1, 0)]
        return relax.op.concat(halves, 1)

    after = PropagateQuantization()(make(before, IMAGE))
    assert operators(after) == operators(make(expected, IMAGE))
    assert all(dtype(b.var) == "uint8" for b in bindings(after) if isinstance(b.var.ty, relax.TensorType))


def test_channel_shuffle_moves_bytes() -> None:
    def before(emit, x):  # type: ignore[no-untyped-def]
        y = emit(relax.op.reshape(emit(dq(x, 0.5, 3)), (1, 2, 2, 6, 6)))
        y = emit(relax.op.permute_dims(emit(dq(emit(q(y, 0.5, 3)), 0.5, 3)), [0, 2, 1, 3, 4]))
        y = emit(relax.op.reshape(emit(dq(emit(q(y, 0.5, 3)), 0.5, 3)), (1, 4, 6, 6)))
        return q(y, 0.5, 3)

    def expected(emit, x):  # type: ignore[no-untyped-def]
        y = emit(relax.op.reshape(x, (1, 2, 2, 6, 6)))
        y = emit(relax.op.permute_dims(y, [0, 2, 1, 3, 4]))
        return relax.op.reshape(y, (1, 4, 6, 6))

    assert_equal(PropagateQuantization()(make(before, IMAGE)), make(expected, IMAGE))


def test_operators_that_compute_stay_between_their_borders() -> None:
    def build(emit, x):  # type: ignore[no-untyped-def]
        y = emit(relax.op.nn.avg_pool2d(emit(dq(x, 0.5, 3)), pool_size=(2, 2)))
        return q(emit(relax.op.image.resize2d(y, size=(5, 5), layout="NCHW", method="linear")), 0.5, 3)

    module = make(build, IMAGE)
    assert_equal(PropagateQuantization()(module), module)


def test_a_quantize_node_of_other_parameters_stays() -> None:
    module = make(lambda e, x: q(e(dq(x, 0.5, 3)), 0.5, 4), IMAGE)
    assert_equal(PropagateQuantization()(module), module)
