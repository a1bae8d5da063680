from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from qc_modules import assert_equal, const, make, operators
from tvm import relax

from qcompiler import reference
from qcompiler.passes.canonicalize import Canonicalize

IMAGE = ((1, 4, 6, 6), "float32")


def test_constants_are_folded() -> None:
    scales = np.array([0.5, 0.25], np.float64)

    def before(emit, x):  # type: ignore[no-untyped-def]
        s = emit(relax.op.astype(const(scales), "float32"))
        s = emit(relax.op.reshape(s, (1, 2, 1, 1)))
        return relax.op.multiply(x, s)

    def expected(emit, x):  # type: ignore[no-untyped-def]
        return relax.op.multiply(x, const(scales.reshape(1, 2, 1, 1), "float32"))

    shape = ((1, 2, 3, 3), "float32")
    assert_equal(Canonicalize()(make(before, shape)), make(expected, shape))


def test_transposed_constants_are_folded() -> None:
    weight = np.arange(6, dtype=np.int8).reshape(2, 3)
    before = make(
        lambda e, x: relax.op.matmul(x, e(relax.op.permute_dims(const(weight), [1, 0]))), ((4, 3), "int8")
    )
    expected = make(lambda e, x: relax.op.matmul(x, const(weight.T)), ((4, 3), "int8"))
    assert_equal(Canonicalize()(before), expected)


def test_the_tuple_around_a_max_pool_is_resolved() -> None:
    def before(emit, x):  # type: ignore[no-untyped-def]
        p = emit(relax.op.nn.max_pool2d(x, pool_size=(2, 2), strides=(2, 2)))
        zeros = emit(relax.op.zeros_like(p))
        pair = emit(relax.Tuple([p, zeros]))
        return relax.op.nn.relu6(emit(relax.TupleGetItem(pair, 0)))

    def expected(emit, x):  # type: ignore[no-untyped-def]
        p = emit(relax.op.nn.max_pool2d(x, pool_size=(2, 2), strides=(2, 2)))
        return relax.op.clip(p, 0, 6)

    after = Canonicalize()(make(before, IMAGE))
    assert operators(after) == operators(make(expected, IMAGE)) == ["relax.nn.max_pool2d", "relax.clip"]


def test_tensors_of_infinities_are_broadcast() -> None:
    shape = (1, 4, 6, 6)

    def filled(value):  # type: ignore[no-untyped-def]
        def body(emit, x):  # type: ignore[no-untyped-def]
            a = emit(relax.op.full(shape, relax.const(value, "float32"), "float32"))
            b = emit(relax.op.full_like(x, relax.const(value, "float32")))
            return relax.op.add(relax.op.add(a, b), x)

        return body

    def expected(emit, x):  # type: ignore[no-untyped-def]
        a = emit(relax.op.broadcast_to(const([-np.inf], "float32"), shape))
        b = emit(relax.op.broadcast_to(const([-np.inf], "float32"), shape))
        return relax.op.add(relax.op.add(a, b), x)

    assert_equal(Canonicalize()(make(filled(-np.inf), IMAGE)), make(expected, IMAGE))
    assert_equal(Canonicalize()(make(filled(2.0), IMAGE)), make(filled(2.0), IMAGE))


def test_no_index_reads_beyond_its_table() -> None:
    table = const(np.arange(12, dtype=np.float32).reshape(6, 2))

    def rows(mode):  # type: ignore[no-untyped-def]
        return make(lambda emit, ids: relax.op.take(table, ids, axis=0, mode=mode), ((4,), "int64"))

    assert_equal(Canonicalize()(rows("fast")), rows("wrap"))
    assert_equal(Canonicalize()(rows("clip")), rows("clip"))


def test_operators_that_do_nothing_vanish() -> None:
    def before(emit, x):  # type: ignore[no-untyped-def]
        y = emit(relax.op.reshape(x, (1, 4, 6, 6)))
        y = emit(relax.op.astype(y, "float32"))
        y = emit(relax.op.permute_dims(y, [0, 1, 2, 3]))
        y = emit(relax.op.concat([y], axis=1))
        return relax.op.nn.relu(y)

    assert_equal(Canonicalize()(make(before, IMAGE)), make(lambda e, x: relax.op.nn.relu(x), IMAGE))


def test_flatten_and_squeeze_are_reshapes() -> None:
    for spelling in (relax.op.flatten, relax.op.squeeze):
        shape = ((6, 1), "float32")
        after = Canonicalize()(make(lambda e, x, f=spelling: relax.op.nn.relu(e(f(x))), shape))
        assert_equal(after, make(lambda e, x: relax.op.nn.relu(e(relax.op.reshape(x, (6,)))), shape))


def test_what_has_one_spelling_is_left_alone() -> None:
    def build(emit, x):  # type: ignore[no-untyped-def]
        y = emit(relax.op.permute_dims(x, [0, 2, 3, 1]))
        y = emit(relax.op.astype(y, "int32"))
        return relax.op.concat([y, y], axis=3)

    module = make(build, IMAGE)
    assert_equal(Canonicalize()(module), module)


@pytest.mark.parametrize("sections", [2, [1, 4]])
def test_a_split_becomes_slices(sections: Any) -> None:
    ends = [0, 3, 6] if sections == 2 else [0, 1, 4, 6]

    def build(emit, x):  # type: ignore[no-untyped-def]
        parts = emit(relax.op.split(x, sections, axis=-2))
        return tuple(relax.TupleGetItem(parts, k) for k in reversed(range(len(ends) - 1)))

    after = Canonicalize()(make(build, ((2, 6, 5), "float32")))
    assert operators(after) == ["relax.strided_slice"] * (len(ends) - 1)
    x = np.arange(60, dtype=np.float32).reshape(2, 6, 5)
    got = reference.Interpreter(after).run([x])
    for value, k in zip(got, reversed(range(len(ends) - 1)), strict=True):
        np.testing.assert_array_equal(value.array, x[:, ends[k] : ends[k + 1]])


def test_an_index_from_the_end_counts_from_the_end() -> None:
    table = np.arange(12, dtype=np.float32).reshape(4, 3)
    before = make(lambda e, x: relax.op.take(const(table), x, axis=0), ((3,), "int64"))
    after = Canonicalize()(before)
    assert_equal(
        after, make(lambda e, x: relax.op.take(const(table), x, axis=0, mode="wrap"), ((3,), "int64"))
    )
    (found,) = reference.Interpreter(after).run([np.array([-1, 3, 0])])
    np.testing.assert_array_equal(found.array, table[[-1, 3, 0]])


def test_a_scalar_stays_a_scalar() -> None:
    module = make(
        lambda e, x: relax.op.full_like(x, e(relax.op.astype(const(2.0, "float64"), "float32"))), IMAGE
    )
    after = Canonicalize()(module)
    (found,) = reference.Interpreter(after).run([np.zeros(IMAGE[0], IMAGE[1])])
    assert (found.array == 2).all()
