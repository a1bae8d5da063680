"""The depthwise kernel with dot products: its packing, its order of lanes, its tiles against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from qc_modules import in_thread, runs_here

from qcompiler.targets import registry
from qcompiler.targets.cpu.shapes import ConvShape
from qcompiler.targets.x86 import depthwise
from qcompiler.targets.x86.computes import Requantization

TARGET = registry.resolve("native")


@given(channels=st.integers(1, 300).map(lambda c: 4 * c), lanes=st.sampled_from([8, 16]))
def test_runs_cover_every_channel_once(channels: int, lanes: int) -> None:
    seen: list[int] = []
    positions: list[int] = []
    for run in depthwise.channel_runs(channels, lanes):
        positions += run.vectors
        for k in range(len(run.vectors)):
            seen += [run.channel + c for c in run.order(k)]
    assert sorted(seen) == list(range(channels))
    assert positions == list(range(depthwise.vectors(channels, lanes)))
    packed = depthwise.pack_channels(np.arange(1, channels + 1), lanes)
    assert sorted(v for v in packed.reshape(-1) if v) == list(range(1, channels + 1))


def reference(x: np.ndarray, weight: np.ndarray, shape: ConvShape) -> np.ndarray:
    total = np.zeros((shape.batch, shape.out_height, shape.out_width, shape.out_channels), np.int64)
    for p in range(shape.kernel[0]):
        for q in range(shape.kernel[1]):
            moved = x[:, p * shape.dilation[0] :, q * shape.dilation[1] :]
            taken = moved[:, :: shape.strides[0], :: shape.strides[1]]
            total += taken[:, : shape.out_height, : shape.out_width].astype(np.int64) * weight[:, 0, p, q]
    return total


CASES = [
    (ConvShape(1, 9, 11, 64, 64, (3, 3), (1, 1), (0, 0, 0, 0), (1, 1), 64), Requantization(3, 3, 200, True)),
    (
        ConvShape(2, 7, 8, 152, 152, (3, 3), (2, 2), (0, 0, 0, 0), (1, 1), 152),
        Requantization(0, 0, 255, False),
    ),
    (
        ConvShape(1, 12, 13, 20, 20, (5, 5), (1, 2), (0, 0, 0, 0), (2, 1), 20),
        Requantization(128, 9, 255, True),
    ),
    (
        ConvShape(1, 9, 9, 192, 192, (7, 7), (1, 1), (0, 0, 0, 0), (1, 1), 192),
        Requantization(7, 0, 255, True),
    ),
    (ConvShape(1, 3, 9, 68, 68, (1, 4), (1, 1), (0, 0, 0, 0), (1, 1), 68), Requantization(255, 0, 254, True)),
]


@pytest.mark.parametrize("lanes", [8, 16])
@pytest.mark.parametrize("tile", [1, 3, 4])
@pytest.mark.parametrize(
    ("shape", "last"), CASES, ids=lambda v: str(v.kernel) if isinstance(v, ConvShape) else ""
)
def test_equals_numpy(shape: ConvShape, last: Requantization, tile: int, lanes: int) -> None:
    if not runs_here(registry.resolve("x86-avx512-vnni")):
        pytest.skip("this CPU lacks AVX-512-VNNI")
    function = depthwise.depthwise_vnni(shape, last, lanes, tile)
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    built = tvm.compile(module, target=registry.to_tvm(TARGET, 1))
    rng = np.random.default_rng(0)
    channels = shape.in_channels
    x = rng.integers(0, 256, (shape.batch, shape.height, shape.width, channels)).astype(np.uint8)
    weight = rng.integers(-127, 128, (channels, 1, *shape.kernel)).astype(np.int8)
    x[:, :, :3], weight[:4] = 255, -127
    bias = rng.integers(-999, 999, channels).astype(np.int32)
    multiplier = rng.uniform(0.0, 0.01, channels).astype(np.float32)
    if not last.bounded:
        multiplier[::5] *= np.float32(1e12)
    scaled = (reference(x, weight, shape) + bias).astype(np.float32) * multiplier
    expected = np.clip(np.rint(scaled) + np.float32(last.zero_point), last.lo, last.hi).astype(np.uint8)
    packed = [
        depthwise.pack_weight(weight, lanes),
        depthwise.pack_channels(bias, lanes),
        depthwise.pack_channels(multiplier, lanes),
    ]

    def run() -> np.ndarray:
        tensors = [tvm.runtime.tensor(a) for a in (x, *packed, np.zeros_like(expected))]
        built["main"](*tensors)
        return tensors[-1].numpy()

    np.testing.assert_array_equal(in_thread(run), expected)


@settings(deadline=None, max_examples=40)
@given(kh=st.integers(1, 9), kw=st.integers(1, 5), channels=st.integers(1, 40).map(lambda c: 4 * c))
def test_packed_weights_hold_every_weight_once(kh: int, kw: int, channels: int) -> None:
    weight = np.random.default_rng(0).integers(1, 127, (channels, 1, kh, kw)).astype(np.int8)
    packed = depthwise.pack_weight(weight, 16)
    assert packed.shape == (depthwise.vectors(channels, 16), kw, -(-kh // 4), 16, 4)
    assert sorted(packed[packed != 0]) == sorted(weight.reshape(-1))
