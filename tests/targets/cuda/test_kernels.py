"""Kernels in every tile, on both sets of instructions, and what TVM's verifier says of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import gpu_simulator
import numpy as np
import pytest
import tvm
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tvm import tirx
from tvm.s_tir.analysis import verify_gpu_code

from qcompiler.driver.gpu import embed, limits
from qcompiler.targets import cuda, registry
from qcompiler.targets.base import GpuTarget
from qcompiler.targets.cpu.shapes import ConvShape
from qcompiler.targets.cuda import decisions
from qcompiler.targets.cuda.depthwise import Depthwise
from qcompiler.targets.cuda.direct import Grouped, Rows
from qcompiler.targets.cuda.finish import Epilogue, Requantization
from qcompiler.targets.cuda.gemm import Gemm, Tile
from qcompiler.targets.cuda.layouts import pack_fragments, pad_groups

SHAPES = {
    "stem": ConvShape(1, 224, 224, 3, 64, (7, 7), (2, 2), (3, 3, 3, 3), (1, 1), 1),
    "3x3": ConvShape(1, 56, 56, 64, 64, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "3x3 of few pixels": ConvShape(1, 7, 7, 512, 512, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 1),
    "1x1": ConvShape(8, 14, 14, 1024, 256, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1),
    "groups": ConvShape(1, 14, 14, 256, 256, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 32),
}
GPUS = [t for t in registry.known() if isinstance(t, GpuTarget)]
EPILOGUE = Epilogue(Requantization(3, 0, 255), None)
LIMITS = {
    "max_threads_per_block": 1024,
    "max_shared_memory_per_block": 48 * 1024,
    "max_vthread": 8,
    "max_vector_bytes": 16,
}
"""What every architecture allows without being asked for more."""


def lowered(function: tirx.PrimFunc, target: GpuTarget) -> Iterator[tirx.PrimFunc]:
    """The functions of the device that a kernel becomes."""
    pipeline, _, _ = tvm.tirx.get_default_tir_pipeline(registry.to_tvm(target, 1))
    module = tvm.IRModule({"main": function.with_attr("global_symbol", "main")})
    made = registry.to_tvm(target, 1)
    with made:
        module = pipeline(tirx.transform.BindTarget(made)(module))
    found = [f for _, f in module.functions_items() if "tirx.kernel_launch_params" in (f.attrs or {})]
    assert found
    return iter(found)


@pytest.mark.parametrize("target", GPUS, ids=lambda t: t.name)
@pytest.mark.parametrize("name", SHAPES)
def test_tiles_fit_the_gpu(name: str, target: GpuTarget) -> None:
    tile = decisions.choose_tile(SHAPES[name], target)
    assert tile.shared_bytes <= target.shared_bytes
    assert tile.threads <= target.block_threads
    assert tile.rows * tile.columns // tile.threads <= 64, "accumulators of a thread"


def test_tiles_follow_from_the_number_of_multiprocessors() -> None:
    large, small = (decisions.choose_tile(SHAPES[name], cuda.SM75) for name in ("1x1", "3x3 of few pixels"))
    assert (large.rows, large.columns, large.splits) == (128, 64, 1)
    assert small.splits > 1


@pytest.mark.parametrize("target", GPUS, ids=lambda t: t.name)
@pytest.mark.parametrize(
    "extents", [(7, 512, 512, 3), (7, 2048, 512, 1), (14, 256, 256, 3), (14, 1024, 256, 1)], ids=str
)
def test_sums_are_shared_where_multiprocessors_would_be_idle(
    extents: tuple[int, int, int, int], target: GpuTarget
) -> None:  # fmt: skip
    """ResNet-50's layers of few pixels, batch 1: one wave of blocks, most multiprocessors have one, none has two."""
    size, channels, out, kernel = extents
    pad = (kernel // 2,) * 4
    shape = ConvShape(1, size, size, channels, out, (kernel, kernel), (1, 1), pad, (1, 1), 1)
    tile = decisions.choose_tile(shape, target)
    blocks = -(-size * size // tile.rows) * -(-out // tile.columns)
    assert tile.splits > 1 or blocks >= target.multiprocessors
    if tile.splits > 1:
        assert decisions.FILLED * target.multiprocessors <= blocks * tile.splits <= target.multiprocessors
        assert tile.splits * decisions.SPLIT_BYTES <= channels * kernel * kernel


@pytest.mark.parametrize("tile", decisions.TILES, ids=str)
def test_products_pass_the_verifier(tile: tuple[int, int, tuple[int, int]]) -> None:
    rows, columns, warps = tile
    gemm = Gemm(
        SHAPES["3x3"],
        EPILOGUE,
        Tile(rows, columns, warps, decisions.stages(rows, columns, cuda.SM80)),
        3,
        False,
    )
    for function in lowered(gemm.function(), cuda.SM80):
        assert verify_gpu_code(function, LIMITS)
        assert not verify_gpu_code(
            function, {**LIMITS, "max_shared_memory_per_block": gemm.tile.shared_bytes - 1}
        )
        if gemm.tile.threads > 32:
            assert not verify_gpu_code(function, {**LIMITS, "max_threads_per_block": gemm.tile.threads - 1})


def test_other_kernels_pass_the_verifier() -> None:
    depthwise = ConvShape(1, 14, 14, 96, 96, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 96)
    narrow = ConvShape(1, 14, 14, 96, 96, (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 24)
    for kernel in (
        Depthwise(depthwise, EPILOGUE, 3),
        Grouped(narrow, EPILOGUE, 3),
        Rows(1, 512, 512, 1000, EPILOGUE),
    ):
        for function in lowered(kernel.function(), cuda.SM80):
            assert verify_gpu_code(function, LIMITS)


@pytest.mark.parametrize("groups", [1, 4])
def test_padding_of_large_bytes_fits_a_word(groups: int) -> None:
    """Of windows of fewer than four bytes some are never in the image; 255 as the top byte of a word is a negative number."""
    shape = ConvShape(1, 9, 9, groups, 2 * groups, (1, 1), (1, 1), (1, 1, 1, 1), (1, 1), groups)
    kernel = (
        Grouped(shape, EPILOGUE, 255)
        if groups > 1
        else Gemm(shape, EPILOGUE, Tile(32, 32, (1, 1), 2), 255, False)
    )
    assert list(lowered(kernel.function(), cuda.SM80))


ODD = ConvShape(1, 9, 11, 20, 72, (3, 2), (1, 2), (1, 0, 2, 1), (1, 1), 1)
"""A convolution whose rows, columns and k fill no tile."""


def variants(capability: int) -> list[Tile]:
    """Every tile; and on one of them every number of stages, depth of k, and way to share the sums."""
    tiles = [
        Tile(rows, columns, warps, 2 + number % 2 * (rows * columns <= 64 * 64))
        for number, (rows, columns, warps) in enumerate(decisions.TILES)
    ]
    tiles += [
        Tile(32, 64, (1, 2), 3, splits=2),
        Tile(16, 32, (1, 1), 2, 32, 4),
        Tile(64, 64, (2, 2), 2, 128),
    ]
    return [*tiles, Tile(32, 32, (1, 1), 4, 64, 2)] if capability >= 80 else tiles


def convolved(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, multiplier: np.ndarray) -> np.ndarray:
    """The result of ``ODD`` by its definition, padded with 7, zero point 3."""
    image = np.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=7).astype(np.int64)
    total = np.zeros((1, ODD.out_height, ODD.out_width, ODD.out_channels), np.int64)
    for i in range(3):
        for j in range(2):
            window = image[:, i : i + ODD.out_height, j : j + 2 * ODD.out_width : 2]
            total += window @ weight[:, :, i, j].T.astype(np.int64)
    return np.clip(np.rint((total + bias).astype(np.float32) * multiplier) + 3, 0, 255).astype(np.uint8)


def simulated(gemms: dict[str, Gemm], capability: int, library: Path) -> None:
    """Builds kernels for a simulated GPU."""
    functions = {name: gemm.function().with_attr("global_symbol", name) for name, gemm in gemms.items()}
    with embed.source_only(), limits.verified(cuda.SM75):
        executable = tvm.compile(tvm.IRModule(functions), target=registry.to_tvm(cuda.SM75, 1))
    gpu_simulator.export(executable, library, capability)


@pytest.mark.parametrize("capability", [75, 80])
def test_every_tile_is_exact(capability: int, tmp_path: Path) -> None:
    """All tiles on one convolution, with weights of -127 to 127."""
    if gpu_simulator.why_not():
        pytest.skip(str(gpu_simulator.why_not()))
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, 9, 11, 20), np.uint8)
    weight = rng.integers(-127, 128, (72, 20, 3, 2)).astype(np.int8)
    bias = rng.integers(-9000, 9000, 72).astype(np.int32)
    multiplier = rng.uniform(1e-4, 2e-3, 72).astype(np.float32)
    gemms = {f"tile_{n}": Gemm(ODD, EPILOGUE, tile, 7, False) for n, tile in enumerate(variants(capability))}
    library = tmp_path / "tiles.so"
    simulated(gemms, capability, library)
    padded = gemms["tile_0"].blocks * 32
    arguments = [
        x, pack_fragments(weight, 1, 128), pad_groups(bias, 1, padded), pad_groups(multiplier, 1, padded),
        np.zeros((1, ODD.out_height, ODD.out_width, 72), np.uint8),
    ]  # fmt: skip
    outputs = gpu_simulator.call(library, list(gemms), arguments)
    expected = convolved(x, weight, bias, multiplier)
    assert 0 < expected.mean() < 255
    for name, output in zip(gemms, outputs, strict=True):
        np.testing.assert_array_equal(output, expected, err_msg=name)


@st.composite
def shared_sums(draw: st.DrawFn) -> Gemm:
    """A small convolution or matrix product whose sums several blocks share, on any tile that is quick to simulate."""
    matrix = draw(st.booleans())
    size, channels, out = draw(st.integers(1, 6)), draw(st.integers(1, 80)), draw(st.integers(1, 70))
    kernel = 1 if matrix else draw(st.sampled_from((1, 2, 3)))
    groups = 1 if matrix else draw(st.sampled_from((1, 2)))
    pad = (0,) * 4 if matrix else (kernel - 1, 0, kernel - 1, 0)
    height = 1 if matrix else size
    shape = ConvShape(
        1, height, 10 * size if matrix else size, channels * groups, out * groups, (kernel, kernel), (1, 1), pad, (1, 1), groups
    )  # fmt: skip
    rows, columns, warps = draw(st.sampled_from(decisions.TILES[5:]))
    depth = draw(st.sampled_from((32, 64)))
    tiles = -(-channels * kernel * kernel // 64) * (64 // depth)
    wanted = draw(st.integers(2, max(tiles, 2)))
    splits = -(-tiles // -(-tiles // wanted))
    residual = draw(st.sampled_from((None, 8)))
    tile = Tile(rows, columns, warps, draw(st.sampled_from((2, 3))), depth, splits)
    return Gemm(shape, Epilogue(Requantization(3, 0, 255), residual), tile, 0 if matrix else 255, matrix)


@settings(
    max_examples=3,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(gemms=st.lists(shared_sums(), min_size=3, max_size=3), extreme=st.sampled_from((-128, 127)))
def test_shared_sums_are_exact(
    gemms: list[Gemm], extreme: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Activations of 255 and weights of -128 or 127 in half of the channels, random elsewhere: all bits as by definition."""
    if gpu_simulator.why_not():
        pytest.skip(str(gpu_simulator.why_not()))
    rng = np.random.default_rng(1)
    named = {f"gemm_{n}": gemm for n, gemm in enumerate(gemms)}
    library = tmp_path_factory.mktemp("shared") / "gemms.so"
    simulated(named, 80, library)
    for name, gemm in named.items():
        s = gemm.shape
        x = rng.choice([0, 255, 77], (s.batch, s.height, s.width, s.in_channels)).astype(np.uint8)
        weight = rng.integers(-127, 128, (s.out_channels, s.in_channels // s.groups, *s.kernel))
        weight[::2] = extreme
        bias = rng.integers(-9000, 9000, s.out_channels).astype(np.int32)
        multiplier = rng.uniform(1e-5, 2e-4, s.out_channels).astype(np.float32)
        extents = (s.batch, s.out_height, s.out_width, s.out_channels)
        residual = rng.integers(0, 256, extents).astype(np.uint8)
        factor = rng.integers(0, 2**12, s.out_channels).astype(np.int32)
        offset = rng.integers(-(2**12), 2**12, s.out_channels).astype(np.int32)
        total = _sums(x, weight, s, gemm.pad_value) + bias
        if gemm.epilogue.residual_shift is not None:
            total += (residual.astype(np.int64) * factor + offset) >> gemm.epilogue.residual_shift
        expected = np.clip(np.rint(total.astype(np.float32) * multiplier) + 3, 0, 255).astype(np.uint8)
        shape = (gemm.pixels, s.out_channels) if gemm.matrix else extents
        pad = partial(pad_groups, groups=s.groups, padded=gemm.blocks * 32)
        constants = [pad(bias), pad(multiplier)]
        if gemm.epilogue.residual_shift is not None:
            constants += [residual.reshape(shape), pad(factor), pad(offset)]
        packed = pack_fragments(weight.astype(np.int8), s.groups, gemm.packed_depth)
        arguments = [
            x.reshape(x.shape[2:] if gemm.matrix else x.shape),
            packed,
            *constants,
            np.zeros(shape, np.uint8),
        ]
        (output,) = gpu_simulator.call(library, [name], arguments)
        np.testing.assert_array_equal(output.reshape(extents), expected, err_msg=str(gemm))


def _sums(x: np.ndarray, weight: np.ndarray, s: ConvShape, pad_value: int) -> np.ndarray:
    """The sums of a convolution of stride and dilation 1, by its definition."""
    top, left, bottom, right = s.padding
    image = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=pad_value).astype(
        np.int64
    )
    total = np.zeros((s.batch, s.out_height, s.out_width, s.out_channels), np.int64)
    of_group, outs = s.in_channels // s.groups, s.out_channels // s.groups
    for g in range(s.groups):
        part, out = slice(g * of_group, (g + 1) * of_group), slice(g * outs, (g + 1) * outs)
        for i in range(s.kernel[0]):
            for j in range(s.kernel[1]):
                window = image[:, i : i + s.out_height, j : j + s.out_width, part]
                total[..., out] += window @ weight[out, :, i, j].T
    return total
