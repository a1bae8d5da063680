"""Bundles for GPUs: what is in the library, and that whole models run from it, simulated, in Python and in C."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gpu_simulator
import numpy as np
import pytest
import torch
from c_programs import compile_example
from torch import nn

import qcompiler
from qcompiler.driver.cross import libraries
from qcompiler.driver.gpu import nvrtc, sass
from qcompiler.errors import BuildError
from qcompiler.runtime.manifest import GPU_LIBRARY_NAMES

try:
    nvrtc.toolkit()
    nvrtc.compile_source("", ["sm_80"])
except BuildError as error:
    pytest.skip(str(error), allow_module_level=True)


class Net(nn.Module):
    """Each kind of kernel: dense, depthwise and grouped convolutions, a residual, tables, pooling, a matrix product.

    Two blocks share the sums of each tile of ``dense``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Conv2d(16, 16, 3, 1, 1, groups=16)
        self.grouped = nn.Conv2d(16, 64, 3, 1, 1, groups=4)
        self.dense = nn.Conv2d(64, 64, 3, 1, 1)
        self.classify = nn.Linear(128, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.silu(self.depthwise(self.stem(x)))
        x = self.grouped(x)
        x = torch.relu(x + self.dense(x))
        x = torch.cat([x, torch.nn.functional.max_pool2d(x, 3, 1, 1)], 1)
        return self.classify(x.mean((2, 3)))


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 20, 20, generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[nvrtc.GpuCode]]:
    """A bundle whose driver and GPU code are the simulator's, and the code that it would hold otherwise."""
    if gpu_simulator.why_not():
        pytest.skip(str(gpu_simulator.why_not()))
    codes: list[nvrtc.GpuCode] = []
    compile_source, gpu_libraries = nvrtc.compile_source, libraries.gpu_libraries

    def simulated(source: str, architectures: tuple[str, ...]) -> nvrtc.GpuCode:
        codes.append(compile_source(source, architectures))
        return replace(codes[-1], fatbin=gpu_simulator.host_code(source))

    def simulated_libraries(runtime: Path) -> dict[str, Path]:
        return {**gpu_libraries(runtime), GPU_LIBRARY_NAMES[0]: gpu_simulator.driver() / "libcudart.so.13"}

    torch.manual_seed(0)
    bundle = tmp_path_factory.mktemp("gpu") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvrtc, "compile_source", simulated)
        patch.setattr(libraries, "gpu_libraries", simulated_libraries)
        qcompiler.compile(
            Net().eval(),
            (images(1),),
            calibration=[images(1) for _ in range(2)],
            output=bundle,
            target="cuda-sm80",
        )
    return bundle, codes


def test_manifest_names_architectures_and_counts(built: tuple[Path, list[nvrtc.GpuCode]]) -> None:
    manifest = qcompiler.runtime.read_manifest(built[0])
    assert (manifest.target_name, manifest.architectures, manifest.least_capability) == (
        "cuda-sm80",
        ("sm_80",),
        80,
    )
    instructions = {layer.name: layer.instruction for layer in manifest.layers if layer.macs}
    assert instructions == {
        "stem_0": "mma.sync", "depthwise": "dp4a", "grouped": "dp4a", "dense": "mma.sync", "classify": "dp4a",
    }  # fmt: skip
    assert all(layer.instruction_count > 0 for layer in manifest.layers if layer.instruction)
    assert not manifest.float_operators
    assert set(GPU_LIBRARY_NAMES) <= set(manifest.files)


def test_code_is_of_the_architecture_and_ptx_of_later_ones(built: tuple[Path, list[nvrtc.GpuCode]]) -> None:
    (code,) = built[1]
    assert list(code.cubins) == ["sm_80"]
    # The PTX in it is rid of some spaces, and no more.
    for text in (b".target sm_80", b"mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32", b"dp4a.u32.s32"):
        assert text in code.ptx
        assert text in code.fatbin
    assert code.cubins["sm_80"] in code.fatbin
    found = {m for counts in sass.count_instructions(code.cubins["sm_80"]).values() for m in counts}
    assert {"IMMA.16832.U8.S8", "IDP.4A.U8.S8"} <= found
    shared = [name for name in code.resources["sm_80"] if re.fullmatch(r"qc_conv2d\d*_kernel_1", name)]
    assert len(shared) == 1, "the kernel that adds the shared sums"
    assert all(r.registers <= 255 and not r.spilled_bytes for r in code.resources["sm_80"].values())
    assert not {m for m in found if m.startswith(("FFMA", "STL", "LDL"))}, "contracted, or spilled"


def test_every_bit_is_the_references(built: tuple[Path, list[nvrtc.GpuCode]], tmp_path: Path) -> None:
    data = tmp_path / "data.npz"
    np.savez(data, x=images(3).numpy())
    command = [
        sys.executable,
        "-c",
        "from qcompiler.cli import main; main()",
        "verify",
        built[0],
        "--data",
        data,
        "--json",
    ]
    ended = subprocess.run(
        command, env=gpu_simulator.environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert '"exact": true' in ended.stdout
    assert '"differing": 0' in ended.stdout


def test_c_runtime_gives_the_same(built: tuple[Path, list[nvrtc.GpuCode]], tmp_path: Path) -> None:
    program = compile_example(built[0], tmp_path)
    image = images(1).numpy()
    (tmp_path / "x.bin").write_bytes(image.tobytes())
    command = [program.path, built[0], "-o", tmp_path / "out.bin", tmp_path / "x.bin"]
    ended = subprocess.run(
        command, env=gpu_simulator.environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    script = (
        "import sys, numpy as np, qcompiler.runtime as r; m = r.load(sys.argv[1]); "
        "x = np.fromfile(sys.argv[2], np.float32).reshape(m.inputs[0].shape); m.run(x)[0].tofile(sys.argv[3]); "
        "assert m.time(x, number=1, repeat=1)[0] > 0; assert len(m.profile(x, repeat=1)) >= len(m.manifest.layers); "
        "import tvm"  # its runtime is the same file: nothing is registered twice
    )
    command = [sys.executable, "-c", script, built[0], tmp_path / "x.bin", tmp_path / "python.bin"]
    ended = subprocess.run(
        command, env=gpu_simulator.environment(), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "out.bin").read_bytes() == (tmp_path / "python.bin").read_bytes()


def test_profile_knows_the_peak_of_the_gpu(built: tuple[Path, list[nvrtc.GpuCode]]) -> None:
    """2048 MAC a cycle of an sm_80, 108 multiprocessors and 1.41 GHz by the driver; of unknown GPUs it is asked for."""

    def profiled(**settings: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from qcompiler.cli import main; main()", "profile", built[0], "--repeat", "1", "--json"]  # fmt: skip
        return subprocess.run(
            command, env=gpu_simulator.environment(**settings), capture_output=True, text=True, check=False
        )

    known = profiled()
    assert known.returncode == 0, known.stderr
    result = json.loads(known.stdout)
    assert result["peak"] == 2048 * 108 * 1410e6
    assert "108 multiprocessors x 1.41 GHz" in result["peak_source"]
    for settings in ({"QC_SIMULATED_KILOHERTZ": 0}, {"QC_SIMULATED_CAPABILITY": 120}):
        unknown = profiled(**settings)
        assert unknown.returncode == 1
        assert "give the peak of the whole chip: --peak GMACS" in unknown.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"QC_SIMULATED_CAPABILITY": 75},
            "needs a GPU of compute capability 8.0 or later, and this one has 7.5",
        ),
        ({"QC_SIMULATED_DEVICES": 0}, "the NVIDIA driver finds no GPU (its status is 0)"),
        (None, "no NVIDIA driver: "),
    ],
)
def test_machines_that_cannot_run_it_are_told(
    built: tuple[Path, list[nvrtc.GpuCode]], settings: dict[str, object] | None, message: str, tmp_path: Path
) -> None:
    if settings is None and why_no_gpu() is None:
        pytest.skip("this machine has a driver")
    environment = gpu_simulator.environment(**settings) if settings is not None else None
    script = "import sys, qcompiler.runtime as r; r.load(sys.argv[1])"
    python = subprocess.run(
        [sys.executable, "-c", script, built[0]], env=environment, capture_output=True, text=True, check=False
    )
    assert python.returncode == 1
    assert message in python.stderr
    program = compile_example(built[0], tmp_path)
    c = subprocess.run([program.path, built[0]], env=environment, capture_output=True, text=True, check=False)
    assert c.returncode == 1
    assert message in c.stderr


def why_no_gpu() -> str | None:
    try:
        qcompiler.runtime.gpu.compute_capability()
    except qcompiler.errors.GpuError as error:
        return str(error)
    return None
