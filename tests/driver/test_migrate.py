"""One quantized file for every target, and bundles that move from one to another."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from qc_modules import why_not_emulated
from torch import nn

import qcompiler
from qcompiler.config import CompileConfig
from qcompiler.driver.compile import compile_model
from qcompiler.driver.cross.model import open_bundle, run_many
from qcompiler.driver.migrate import Migration, from_bundle, migrate
from qcompiler.driver.quantize import quantize_model
from qcompiler.errors import BundleError, ConfigError, QuantizationError
from qcompiler.runtime import read_manifest
from qcompiler.runtime.cpu import cpu_features
from qcompiler.targets import registry

AVX2, VNNI, ARM = "x86-avx2", "x86-avx512-vnni", "arm-dotprod"


def here(target: str) -> bool:
    described = registry.resolve(target)
    return described.family == "x86" and cpu_features().issuperset(described.required_features)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 9, 10, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("quantized") / "q.pt2"
    result = quantize_model(
        network(), CompileConfig(), calibration=[images(8)], output=path, example_inputs=(images(1),)
    )
    assert result.float_operators == ()
    assert sorted(p.name for p in path.parent.iterdir()) == ["q.pt2"]
    return path


@pytest.fixture(scope="module")
def bundles(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bundles")
    for target in (AVX2, VNNI, ARM):
        config = CompileConfig(target=target, tuned=False)
        compile_model(str(archive), config, calibration=None, output=folder / target)
    return {target: folder / target for target in (AVX2, VNNI, ARM)}


def test_one_file_compiles_for_every_target_with_one_meaning(bundles: dict[str, Path]) -> None:
    modules = [(bundle / "reference.json.gz").read_bytes() for bundle in bundles.values()]
    assert modules[0] == modules[1] == modules[2]
    instructions = {t: {layer.instruction for layer in read_manifest(b).layers} for t, b in bundles.items()}
    assert "vpmaddwd" in instructions[AVX2]
    assert "vpdpbusd" in instructions[VNNI]
    assert "sdot" in instructions[ARM]


def test_all_that_run_here_give_the_same_bits(bundles: dict[str, Path]) -> None:
    runnable = [b for t, b in bundles.items() if here(t) or (t == ARM and why_not_emulated() is None)]
    if len(runnable) < 2:
        pytest.skip(f"fewer than two targets run here; {why_not_emulated()}")
    samples = [(x[None].numpy(),) for x in images(6)]
    outputs = [run_many(open_bundle(bundle, 1), samples) for bundle in runnable]
    for other in outputs[1:]:
        for (one,), (two,) in zip(outputs[0], other, strict=True):
            assert one.tobytes() == two.tobytes()


def moved(source: Path, to: str, output: Path) -> Migration:
    return migrate(str(source), CompileConfig(target=to, tuned=False), output=output, threads=1)


def test_a_bundle_moves_without_its_model(bundles: dict[str, Path], tmp_path: Path) -> None:
    result = moved(bundles[AVX2], VNNI, tmp_path / "moved")
    assert result.fault is None
    for name in ("model.so", "constants.bin", "reference.json.gz"):
        direct, migrated = bundles[VNNI] / name, tmp_path / "moved" / name
        assert direct.is_file() == migrated.is_file()
        if name != "model.so" and direct.is_file():
            assert direct.read_bytes() == migrated.read_bytes()
    assert (result.before.target, result.after.target) == (AVX2, VNNI)
    changed = {layer.name: (layer.before, layer.after) for layer in result.layers}
    assert ("vpmaddwd", "vpdpbusd") in changed.values()
    if here(AVX2) and here(VNNI):
        (output,) = result.outputs
        assert (output.exact, output.differing, output.elements) == (True, 0, result.samples * 5)
        assert result.before.seconds is not None
        assert result.after.seconds is not None
        assert all(layer.before_seconds is not None for layer in result.layers)
    x = images(1).numpy()
    if here(VNNI):
        (found,), (wanted,) = (qcompiler.load(b).run(x) for b in (result.bundle, bundles[VNNI]))
        assert np.array_equal(found, wanted)


def test_to_another_architecture_there_are_no_times(bundles: dict[str, Path], tmp_path: Path) -> None:
    result = moved(bundles[AVX2], ARM, tmp_path / "arm")
    assert result.after.activations == "int8"
    assert result.after.seconds is None
    assert all(layer.after_seconds is None for layer in result.layers)
    if why_not_emulated() is None and here(AVX2):
        assert result.after.emulated == "neoverse-n1"
        (output,) = result.outputs
        assert (output.exact, output.differing) == (True, 0)
    else:
        assert result.outputs == ()


def test_refusals(bundles: dict[str, Path], archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no bundle; for a model, say which target"):
        moved(archive, VNNI, tmp_path / "b")
    with pytest.raises(ConfigError, match="is for x86-avx2, not for arm-neon"):
        from_bundle(bundles[AVX2], "arm-neon")
    with pytest.raises(BundleError, match="is the bundle to migrate"):
        moved(bundles[AVX2], VNNI, bundles[AVX2])
    with pytest.raises(ConfigError, match="leave the calibration data out"):
        migrate(str(bundles[AVX2]), CompileConfig(), output=tmp_path / "b", calibration=[images(1)])
    damaged = tmp_path / "damaged"
    shutil.copytree(bundles[AVX2], damaged)
    (damaged / "reference.json.gz").write_bytes(b"")
    with pytest.raises(BundleError, match=r"reference\.json\.gz"):
        moved(damaged, VNNI, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_quantized_once_is_enough(archive: Path, tmp_path: Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(QuantizationError, match="quantized already"):
        quantize_model(str(archive), CompileConfig(), calibration=None, output=tmp_path / "q.pt2")
    with pytest.raises(QuantizationError, match=r"must end in \.pt2"):
        quantize_model(str(archive), CompileConfig(), calibration=None, output=tmp_path / "q")
    assert archive.read_bytes() == before
    assert list(tmp_path.iterdir()) == []
