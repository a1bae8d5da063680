"""Kernels in every tile, on both sets of instructions, and what TVM's verifier says of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gpu_simulator
import numpy as np
import pytest
import tvm
from tvm import tirx
from tvm.s_tir.analysis import verify_gpu_code

from qcompiler.driver.gpu import embed
from qcompiler.targets import cuda, registry
from qcompiler.targets.base import GpuTarget
from qcompiler.targets.cpu.shapes import ConvShape
from qcompiler.targets.cuda import decisions
from qcompiler.targets.cuda.depthwise import Depthwise
from qcompiler.targets.cuda.direct import Grouped, Rows
from qcompiler.targets.cuda.finish import Epilogue, Requantization
from qcompiler.targets.cuda.gemm import DEPTH, Gemm, Tile
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
    assert (large.rows, large.columns) == (128, 64)
    assert small.rows * small.columns < 64 * 64


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


@pytest.mark.parametrize("capability", [75, 80])
def test_every_tile_is_exact(capability: int, tmp_path: Path) -> None:
    """All tiles on one convolution whose rows, columns and k fill none of them, with weights of -127 to 127."""
    if gpu_simulator.why_not():
        pytest.skip(str(gpu_simulator.why_not()))
    shape = ConvShape(1, 9, 11, 20, 72, (3, 2), (1, 2), (1, 0, 2, 1), (1, 1), 1)
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (1, 9, 11, 20), np.uint8)
    weight = rng.integers(-127, 128, (72, 20, 3, 2)).astype(np.int8)
    bias = rng.integers(-9000, 9000, 72).astype(np.int32)
    multiplier = rng.uniform(1e-4, 2e-3, 72).astype(np.float32)
    functions = {}
    for number, (rows, columns, warps) in enumerate(decisions.TILES):
        gemm = Gemm(
            shape,
            EPILOGUE,
            Tile(rows, columns, warps, 2 + number % 2 * (rows * columns <= 64 * 64)),
            7,
            False,
        )
        functions[f"tile_{number}"] = gemm.function().with_attr("global_symbol", f"tile_{number}")
    with embed.source_only():
        executable = tvm.compile(tvm.IRModule(functions), target=registry.to_tvm(cuda.SM75, 1))
    library = tmp_path / "tiles.so"
    gpu_simulator.export(executable, library, capability)
    padded = gemm.blocks * 32
    arguments = [
        x, pack_fragments(weight, 1, gemm.k_tiles * DEPTH), pad_groups(bias, 1, padded), pad_groups(multiplier, 1, padded),
        np.zeros((1, shape.out_height, shape.out_width, 72), np.uint8),
    ]  # fmt: skip
    outputs = gpu_simulator.call(library, list(functions), arguments)
    image = np.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0)), constant_values=7).astype(np.int64)
    total = np.zeros((1, shape.out_height, shape.out_width, 72), np.int64)
    for i in range(3):
        for j in range(2):
            window = image[:, i : i + shape.out_height, j : j + 2 * shape.out_width : 2]
            total += window @ weight[:, :, i, j].T.astype(np.int64)
    scaled = np.rint((total + bias).astype(np.float32) * multiplier)
    expected = np.clip(scaled + 3, 0, 255).astype(np.uint8)
    assert 0 < expected.mean() < 255
    for name, output in zip(functions, outputs, strict=True):
        np.testing.assert_array_equal(output, expected, err_msg=name)
