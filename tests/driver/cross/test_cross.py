"""A bundle for another architecture: its runtime libraries, and running it emulated."""

from __future__ import annotations

import dataclasses
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
import small_bundle
from elftools.elf.elffile import ELFFile
from qc_modules import const, make, why_not_emulated
from tvm import relax

from qcompiler.driver import bundle
from qcompiler.driver.bundle import REFERENCE_NAME
from qcompiler.driver.cross import emulator, libraries
from qcompiler.driver.cross.model import EmulatedModel, emulated_cpu, open_bundle, run_many
from qcompiler.driver.kernels import kernels
from qcompiler.driver.link import link_shared
from qcompiler.driver.machine_code import estimate as estimates
from qcompiler.driver.run import run
from qcompiler.driver.static_profile import static_profile
from qcompiler.driver.verify import verify
from qcompiler.errors import BuildError, CpuError
from qcompiler.operators import call
from qcompiler.passes import pipeline
from qcompiler.reference import storage
from qcompiler.runtime import LayerRecord, Manifest, TensorSpec, load
from qcompiler.targets import registry


def write_arm_bundle(folder: Path, seed: int) -> Path:
    """A convolution for arm-dotprod; the weights of its reference are those of ``seed``, of its library those of 0."""

    def module(seed: int):  # type: ignore[no-untyped-def]
        weight = np.random.default_rng(seed).integers(-127, 128, (16, 32, 1, 1)).astype(np.int8)
        rest = (np.zeros(16, np.int32), np.full(16, 1e-3, np.float32))

        def body(emit, x):  # type: ignore[no-untyped-def]
            y = emit(call("qc.quantize", [x], inv_scale=20.0, zero_point=128, lo=0, hi=255))
            return call(
                "qc.conv2d", [y, const(weight), *(const(c) for c in rest)], strides=[1, 1], padding=[0] * 4,
                dilation=[1, 1], groups=1, layout="NCHW", pad_value=0, zero_point=3, lo=0, hi=255, residual_shift=0,
                out_dtype="uint8", accumulator_bound=2**21,
            )  # fmt: skip

        return make(body, ((1, 32, 5, 7), "float32"))

    target = registry.resolve("arm-dotprod")
    tvm_target = registry.to_tvm(target, 1)
    dump = pipeline.Dump(None)
    physical = pipeline.to_physical(module(0), target, tvm_target, dump=dump, **kernels(target))
    built = relax.build(
        pipeline.to_machine(physical.module, tvm_target, dump), tvm_target, relax_pipeline=None
    )
    built.export_library(str(folder / "model.so"), fcompile=link_shared)
    storage.save(module(seed), folder / REFERENCE_NAME)
    (layer,) = (one for one in physical.layers if one.operator == "conv2d")
    record = LayerRecord(
        name="c", operator="conv2d", dtype="uint8", output_shape=layer.shape, macs=layer.macs, accumulator_bound=None,
        instruction="sdot", instruction_count=1, reason=None, function=layer.kernel, schedule=None,
    )  # fmt: skip
    manifest = dataclasses.replace(
        small_bundle.manifest(),
        inputs=(TensorSpec("x", (1, 32, 5, 7), "float32"),),
        outputs=(TensorSpec("y", (1, 16, 5, 7), "uint8"),),
        target={"name": target.name, "family": "arm", "required_features": list(target.required_features)},
        layers=(record,),
        alternatives=(),
    )
    return bundle.write(
        folder / "bundle", folder / "model.so", manifest, {REFERENCE_NAME: folder / REFERENCE_NAME}
    )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    np.savez(
        tmp_path / "in.npz", x=np.random.default_rng(5).normal(size=(3, 32, 5, 7)).astype(np.float32) * 3
    )
    return tmp_path / "in.npz"


@pytest.fixture
def emulation() -> None:
    if (reason := why_not_emulated()) is not None:
        pytest.skip(reason)


def test_bundle_holds_its_architectures_libraries(tmp_path: Path) -> None:
    written = write_arm_bundle(tmp_path, 0)
    for name in ("model.so", *libraries.runtime_libraries("arm")):
        with (written / name).open("rb") as file:
            assert ELFFile(file)["e_machine"] == "EM_AARCH64"
    with pytest.raises(CpuError, match="bundle is for arm Linux"):
        load(written)


def test_inner_loops_are_estimated_without_the_chip(tmp_path: Path) -> None:
    profile = static_profile(write_arm_bundle(tmp_path, 0))
    (row,) = profile.rows
    assert (row.name, row.instruction, profile.peak) == ("c", "sdot", 32)
    assert row.loop_macs >= 16 * 16
    assert 0.5 < row.bound_share <= 1


@pytest.mark.usefixtures("emulation")
def test_executed_instructions_are_counted(tmp_path: Path) -> None:
    """Each turn of the inner loop is executed as often as its products make the layer."""
    profile = static_profile(write_arm_bundle(tmp_path, 0))
    (row,) = profile.rows
    assert row.executed is not None
    assert profile.executed is not None
    assert "qemu-aarch64" in profile.counting
    turns = row.macs / row.loop_macs
    assert turns * row.loop_instructions * 0.8 < row.executed < profile.executed
    assert row.executed < 4 * turns * row.loop_instructions + 10_000


def test_nothing_is_counted_without_an_emulator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = write_arm_bundle(tmp_path, 0)
    monkeypatch.setenv("PATH", str(tmp_path))
    estimates.analyzer.cache_clear()
    profile = static_profile(written)
    estimates.analyzer.cache_clear()
    assert profile.executed is None
    assert profile.rows[0].executed is None
    assert "not counted: no emulator for aarch64" in profile.counting


@pytest.mark.usefixtures("emulation")
def test_verified_and_run_under_emulation(tmp_path: Path, data: Path) -> None:
    written = write_arm_bundle(tmp_path, 0)
    result = verify(written, data, threads=1)
    assert (result.samples, result.fault, result.emulated) == (3, None, "neoverse-n1")
    assert result.outputs[0].exact
    assert run(written, data, tmp_path / "out.npz", threads=2).samples == 3
    with np.load(tmp_path / "out.npz") as written_arrays:
        assert written_arrays["y"].shape == (3, 16, 5, 7)


@pytest.mark.usefixtures("emulation")
def test_other_weights_are_found_under_emulation(tmp_path: Path, data: Path) -> None:
    result = verify(write_arm_bundle(tmp_path, 1), data, threads=1)
    assert result.fault is not None


@pytest.mark.usefixtures("emulation")
def test_failure_of_the_emulated_process_is_told(tmp_path: Path) -> None:
    (tmp_path / "model.so").write_bytes(b"no library")
    with pytest.raises(BuildError, match=r"ended with exit status 1 under qemu.* -cpu max: .*model\.so"):
        emulator.run(tmp_path / "model.so", [], family="arm")


def test_native_bundle_is_loaded(small_bundle_path: Path) -> None:
    model = open_bundle(small_bundle_path, 1)
    assert not isinstance(model, EmulatedModel)
    assert len(run_many(model, [small_bundle.inputs()])) == 1


@pytest.mark.parametrize(
    ("target", "cpu"),
    [("arm-neon", "cortex-a72"), ("arm-dotprod", "neoverse-n1"), ("arm-neoverse-n1", "neoverse-n1"), ("arm-i8mm", "max"), ("arm-apple-m1", "max")],
)  # fmt: skip
def test_emulated_processor_has_no_more_than_it_must(target: str, cpu: str) -> None:
    needs = {
        "required_features": list(registry.resolve(target).required_features),
        "family": "arm",
        "name": target,
    }
    manifest: Manifest = dataclasses.replace(small_bundle.manifest(), target=needs)
    assert emulated_cpu(manifest) == cpu


def test_missing_emulator_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BuildError, match=r"no emulator for aarch64: .* apt-get install qemu-user-static"):
        emulator.find("arm")
    (tmp_path / "qemu-aarch64-static").touch(0o755)
    monkeypatch.setattr(emulator, "_ROOTS", (tmp_path / "root",))
    with pytest.raises(
        BuildError, match=r"no C\+\+ library for aarch64 in .*apt-get install libc6-arm64-cross"
    ):
        emulator.find("arm")


def test_libraries_that_cannot_be_downloaded_are_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def offline(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no network\n")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(
        BuildError, match=r"holds libtvm_runtime\.so .* not in .*aarch64 and could not .*: ERROR: no network"
    ):
        libraries.runtime_libraries("arm")


def test_library_is_taken_out_of_a_wheel_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    downloads = []

    def download(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        downloads.append(command[-1])
        (folder,) = (c.removeprefix("--dest=") for c in command if c.startswith("--dest="))
        with zipfile.ZipFile(Path(folder) / "some.whl", "w") as wheel:
            for name in ("libtvm_runtime.so", "libtvm_ffi.so"):
                wheel.writestr(f"tvm/lib/{name}", name)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(subprocess, "run", download)
    for _ in range(2):
        found = libraries.runtime_libraries("arm")
        assert [path.read_text() for path in found.values()] == ["libtvm_runtime.so", "libtvm_ffi.so"]
    assert [d.partition("==")[0] for d in downloads] == ["apache-tvm", "apache-tvm-ffi"]
