from __future__ import annotations

from typing import Any

import numpy as np
from qc_modules import assert_equal, const, in_thread, make, operators
from tvm import relax

from qcompiler import operators as qc
from qcompiler.passes.plan_layout import PlanLayout
from qcompiler.reference import interpret

op = relax.op
SHAPE = (1, 8, 5, 6)
IMAGE = (SHAPE, "uint8")
TO_LAST, TO_FIRST = [0, 2, 3, 1], [0, 3, 1, 2]
WEIGHT = np.random.default_rng(0).integers(-127, 128, (8, 8, 1, 1)).astype(np.int8)


def conv(x: relax.Expr, layout: str = "NCHW", *residual: relax.Expr) -> relax.Call:
    args = [
        x,
        const(WEIGHT),
        const(np.arange(8, dtype=np.int32)),
        const(np.full(8, 1e-3, np.float32)),
        *residual,
    ]
    if residual:
        args += [const(np.full(8, 3, np.int32)), const(np.full(8, -9, np.int32))]
    return qc.call(
        "qc.conv2d", args, strides=[1, 1], padding=[0] * 4, dilation=[1, 1], groups=1, layout=layout, pad_value=3,
        zero_point=100, lo=0, hi=255, residual_shift=0, out_dtype="uint8", accumulator_bound=10**6,
    )  # fmt: skip


def add(a: relax.Expr, b: relax.Expr) -> relax.Call:
    return qc.call("qc.add", [a, b], a_multiplier=1, b_multiplier=2, offset=-200, shift=1, lo=0, hi=255)


def permutes(module: Any) -> int:
    return operators(module).count("relax.permute_dims")


def assert_same_values(before: Any, after: Any, *shapes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    data = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    ours, theirs = (in_thread(lambda m=m: interpret(m, data)) for m in (after, before))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(a.array, b.array)


def test_a_convolution_is_permuted_once_each_way() -> None:
    def expected(emit, x):  # type: ignore[no-untyped-def]
        y = emit(conv(emit(op.permute_dims(x, TO_LAST)), "NHWC"))
        return op.permute_dims(y, TO_FIRST)

    after = PlanLayout()(make(lambda e, x: conv(x), IMAGE))
    assert operators(after) == operators(make(expected, IMAGE))
    assert_same_values(make(lambda e, x: conv(x), IMAGE), after, SHAPE)


def tower(emit: Any, x: relax.Expr) -> Any:
    """Residuals, a concatenation, a slice, an up-sampling, a table and pooling between two convolutions."""
    y = emit(conv(x))
    y = emit(conv(y, "NCHW", x))
    y = emit(add(y, x))
    z = emit(op.concat([y, x], axis=1))
    z = emit(op.strided_slice(z, axes=[1], begin=[4], end=[12]))
    z = emit(qc.call("qc.lut", [z, const(np.arange(256)[::-1].astype(np.uint8))]))
    z = emit(op.image.resize2d(z, size=(10, 12), layout="NCHW", method="nearest_neighbor"))
    return conv(emit(pool_to(z)))


def pool_to(x: relax.Expr) -> relax.Call:
    return qc.call(
        "qc.max_pool2d", [x], pool_size=[2, 2], strides=[2, 2], padding=[0] * 4, dilation=[1, 1], layout="NCHW",
        out_size=[5, 6],
    )  # fmt: skip


def test_a_tower_is_permuted_at_its_ends_alone() -> None:
    before = make(tower, IMAGE)
    after = PlanLayout()(before)
    assert permutes(after) == 2
    assert_same_values(before, after, SHAPE)


def shuffle(emit: Any, x: relax.Expr) -> Any:
    y = emit(conv(x))
    y = emit(op.reshape(y, (1, 2, 4, 5, 6)))
    y = emit(op.permute_dims(y, [0, 2, 1, 3, 4]))
    y = emit(op.reshape(y, SHAPE))
    return conv(y)


def test_a_channel_shuffle_keeps_channels_last() -> None:
    before = make(shuffle, IMAGE)
    after = PlanLayout()(before)
    assert operators(after) == [
        "relax.permute_dims", "qc.conv2d", "relax.reshape", "relax.permute_dims", "relax.reshape", "qc.conv2d",
        "relax.permute_dims",
    ]  # fmt: skip
    assert_same_values(before, after, SHAPE)


def test_a_tensor_that_many_want_channels_first_is_permuted_once() -> None:
    def build(emit, x):  # type: ignore[no-untyped-def]
        y = emit(conv(x))
        return tuple(emit(op.reshape(y, shape)) for shape in ((1, 240), (240,), (2, 120)))

    after = PlanLayout()(make(build, IMAGE))
    assert permutes(after) == 2
    assert_same_values(make(build, IMAGE), after, SHAPE)


def test_one_pixel_is_reshaped() -> None:
    def build(emit, x):  # type: ignore[no-untyped-def]
        return op.reshape(emit(conv(x)), (1, 8))

    after = PlanLayout()(make(build, ((1, 8, 1, 1), "uint8")))
    assert permutes(after) == 0
    assert_same_values(make(build, ((1, 8, 1, 1), "uint8")), after, (1, 8, 1, 1))


def test_padding_keeps_channels_last() -> None:
    def build(emit, x):  # type: ignore[no-untyped-def]
        y = emit(op.nn.pad(emit(conv(x)), [0, 0, 0, 0, 1, 2, 3, 0], "constant", 7.0))
        return op.reshape(y, (8 * 8 * 9,))

    after = PlanLayout()(make(build, IMAGE))
    assert permutes(after) == 2
    assert_same_values(make(build, IMAGE), after, SHAPE)


def test_what_has_no_image_is_left_alone() -> None:
    def build(emit, a, b):  # type: ignore[no-untyped-def]
        return add(emit(add(a, b)), emit(op.concat([a, b], axis=0)))

    module = make(build, ((1, 8), "uint8"), ((1, 8), "uint8"))
    assert_equal(PlanLayout()(module), module)


def test_elementwise_operators_away_from_images_are_left_alone() -> None:
    module = make(lambda e, a, b: add(a, b), IMAGE, IMAGE)
    assert_equal(PlanLayout()(module), module)


def test_constant_operands_get_their_channels_last() -> None:
    """A constant of one value a channel broadcasts over space in either layout; same bits as the reference."""
    rng = np.random.default_rng(0)
    gain = relax.const(rng.integers(0, 256, (5, 1, 1)).astype(np.uint8), "uint8")

    def graph(emit, x):  # type: ignore[no-untyped-def]
        pooled = emit(
            qc.call(
                "qc.max_pool2d", [x], pool_size=[1, 1], strides=[1, 1], padding=[0] * 4, dilation=[1, 1],
                layout="NCHW", out_size=[4, 4],
            )
        )  # fmt: skip
        return qc.call(
            "qc.mul",
            [pooled, gain],
            a_zero_point=3,
            b_zero_point=7,
            multiplier=0.01,
            zero_point=9,
            lo=0,
            hi=255,
        )

    module = make(graph, ((2, 5, 4, 4), "uint8"))
    planned = PlanLayout()(module)
    x = rng.integers(0, 256, (2, 5, 4, 4)).astype(np.uint8)
    (before,), (after,) = interpret(module, [x]), interpret(planned, [x])
    assert np.array_equal(before.array, after.array)


def test_float_layers_and_what_lies_between_them_keep_channels_last() -> None:
    weight = const(np.ones((8, 8, 1, 1), np.float32))

    def layer(x: relax.Expr, layout: str) -> relax.Call:
        return qc.call(
            "qc.float_conv2d", [x, weight, const(np.zeros(8, np.float32))], strides=[1, 1], padding=[0] * 4,
            dilation=[1, 1], groups=1, layout=layout, lo=0.0, hi=6.0, precision="float32", out_dtype="float32",
        )  # fmt: skip

    def before(emit, x):  # type: ignore[no-untyped-def]
        y = emit(op.nn.silu(emit(layer(x, "NCHW"))))
        pooled = emit(op.nn.max_pool2d(emit(op.add(y, const(np.ones((8, 1, 1), np.float32)))), [2, 2]))
        return op.mean(emit(layer(pooled, "NCHW")), [2, 3], keepdims=True)

    def expected(emit, x):  # type: ignore[no-untyped-def]
        y = emit(op.nn.silu(emit(layer(emit(op.permute_dims(x, TO_LAST)), "NHWC"))))
        moved = emit(op.add(y, const(np.ones((1, 1, 1, 8), np.float32))))
        pooled = emit(op.nn.max_pool2d(moved, [2, 2], [1, 1], [0, 0, 0, 0], [1, 1], False, False, "NHWC"))
        return op.reshape(emit(op.mean(emit(layer(pooled, "NHWC")), [1, 2], keepdims=True)), (1, 8, 1, 1))

    image = (SHAPE, "float32")
    assert_equal(PlanLayout()(make(before, image)), make(expected, image))
