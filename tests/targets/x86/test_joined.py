"""The depthwise kernel that reads what is concatenated for it, against NumPy and the reference interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from qc_modules import build, const, in_thread, make, reference, run, runs_here
from tvm import relax

from qcompiler import operators as qc
from qcompiler.targets import registry
from qcompiler.targets.x86 import depthwise, joined
from qcompiler.targets.x86.computes import Requantization

TARGET = registry.resolve("native")
PIXELS = (2, 3, 5)

pieces = st.lists(
    st.builds(joined.Piece, st.integers(1, 40).map(lambda c: 4 * c), st.booleans()), min_size=1, max_size=6
)


@settings(deadline=None, max_examples=20)
@given(
    pieces=pieces,
    lanes=st.sampled_from([8, 16]),
    zero_point=st.integers(0, 255),
    bounds=st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted),
    seed=st.integers(0, 9),
)
def test_equals_numpy(
    pieces: list[joined.Piece], lanes: int, zero_point: int, bounds: list[int], seed: int
) -> None:
    if not TARGET.has_vbmi or not runs_here(registry.resolve("x86-avx512-vnni")):
        pytest.skip("this CPU lacks AVX-512-VNNI and VBMI")
    last = Requantization(zero_point, *bounds, True)
    function = joined.depthwise_of_concat(PIXELS, pieces, last, lanes)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    built = tvm.compile(module, target=registry.to_tvm(TARGET, 1))
    rng = np.random.default_rng(seed)
    inputs = [rng.integers(0, 256, (*PIXELS, p.channels)).astype(np.uint8) for p in pieces]
    inputs[0][:, 0], inputs[-1][:, -1] = 255, 0
    tables = [rng.permutation(256).astype(np.uint8) if p.looked_up else None for p in pieces]
    x = np.concatenate([i if t is None else t[i] for i, t in zip(inputs, tables, strict=True)], axis=-1)
    channels = x.shape[-1]
    weight = rng.integers(-127, 128, (channels, 1, 1, 1)).astype(np.int8)
    weight[:4] = -127
    bias = rng.integers(-999, 999, channels).astype(np.int32)
    multiplier = rng.uniform(0.0, 0.02, channels).astype(np.float32)
    scaled = (x.astype(np.int32) * weight[:, 0, 0, 0] + bias).astype(np.float32) * multiplier
    expected = np.clip(np.rint(scaled) + np.float32(zero_point), *bounds).astype(np.uint8)
    packed = [
        depthwise.pack_weight(weight, lanes),
        depthwise.pack_channels(bias, lanes),
        depthwise.pack_channels(multiplier, lanes),
    ]
    arguments = [*inputs, *(t for t in tables if t is not None), *packed, np.zeros_like(expected)]

    def execute() -> Any:
        tensors = [tvm.runtime.tensor(a) for a in arguments]
        built["main"](*tensors)
        return tensors[-1].numpy()

    np.testing.assert_array_equal(in_thread(execute), expected)


def scaled_concat(channels: list[int], tabled: list[bool]) -> tuple[tvm.IRModule, list[Any]]:
    """A depthwise 1x1 convolution of a concatenation, some of it out of tables, of NCHW inputs."""
    rng = np.random.default_rng(0)
    total = sum(channels)
    inputs = [((1, c, 4, 6), "uint8") for c in channels]

    def body(emit: Any, *xs: relax.Var) -> relax.Expr:
        fields = [
            emit(qc.call("qc.lut", [x, const(rng.permutation(256).astype(np.uint8))])) if table else x
            for x, table in zip(xs, tabled, strict=True)
        ]
        weight = rng.integers(-127, 128, (total, 1, 1, 1)).astype(np.int8)
        return qc.call(
            "qc.conv2d",
            [
                emit(relax.op.concat(fields, axis=1)),
                const(weight),
                const(rng.integers(-99, 99, total).astype(np.int32)),
                const(rng.uniform(0, 0.01, total).astype(np.float32)),
            ],
            strides=[1, 1], padding=[0, 0, 0, 0], dilation=[1, 1], groups=total, pad_value=0, zero_point=7, lo=7, hi=255,
            residual_shift=0, out_dtype="uint8", accumulator_bound=255 * 127 + 99, layout="NCHW",
        )  # fmt: skip

    return make(body, *inputs), inputs


@pytest.mark.parametrize("target", ["native", "x86-avx512-vnni", "x86-avx2"])
@pytest.mark.parametrize(
    ("channels", "tabled"),
    [([64, 32, 32, 12], [False, True, True, True]), ([8, 4], [True, False]), ([6, 10], [False, True])],
)
def test_equals_the_reference(target: str, channels: list[int], tabled: list[bool]) -> None:
    chip = registry.resolve(target)
    if not runs_here(chip):
        pytest.skip(f"this CPU cannot run {target}")
    module, inputs = scaled_concat(channels, tabled)
    rng = np.random.default_rng(1)
    samples = [[rng.integers(0, 256, shape).astype(dtype) for shape, dtype in inputs] for _ in range(2)]
    for got, wanted in zip(run(build(module, chip), samples), reference(module, samples), strict=True):
        np.testing.assert_array_equal(got[0], wanted[0])
