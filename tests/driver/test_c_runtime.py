"""The C runtime is compiled for the machine of the target, and gives the same bits on each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.driver import c_runtime
from qcompiler.driver.cross import emulator
from qcompiler.driver.machines import MACHINES, machine_of
from qcompiler.errors import BuildError

ELF_MACHINES = {"x86": 62, "arm": 183, "cuda": 62}


@pytest.mark.parametrize("family", sorted(MACHINES))
def test_library_is_the_machines_and_names_no_path(family: str) -> None:
    content = c_runtime.library(family)
    assert int.from_bytes(content[18:20], "little") == ELF_MACHINES[family]
    assert str(Path.home()).encode() not in content
    assert str(c_runtime.SOURCE).encode() not in content
    c_runtime.library.cache_clear()
    assert c_runtime.library(family) == content


def test_unknown_family_is_named() -> None:
    with pytest.raises(
        BuildError, match="no machine is known for targets of family 'riscv'; known: x86, arm, cuda"
    ):
        machine_of("riscv")


def test_compilers_words_are_in_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(c_runtime, "_OPTIONS", ("-shared", "-std=c99999"))
    with pytest.raises(BuildError, match=r"compiling the C runtime failed with exit status .*c99999"):
        c_runtime.library.__wrapped__("x86")


@pytest.fixture(scope="module")
def emulated() -> emulator.Emulator:
    try:
        return emulator.find("arm")
    except BuildError as error:
        pytest.skip(str(error))


def run_emulated(
    machine: emulator.Emulator, cpu: str, bundle: Path, *arguments: object
) -> subprocess.CompletedProcess[str]:
    """Builds the bundle's C example for its machine, and runs it there."""
    program = bundle.parent / f"run-{bundle.name}"
    build = [
        *(sys.executable, "-m", "ziglang", "cc", "-target", machine_of("arm").triple, "examples/run.c"),
        *("-Iinclude", "-Llib", "-lqc_runtime", f"-Wl,-rpath,{bundle / 'lib'}", "-o", program),
    ]
    subprocess.run(build, cwd=bundle, check=True)
    command = [machine.qemu, "-cpu", cpu, "-L", machine.root, program, bundle, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.slow
def test_the_c_example_gives_the_same_bits_on_arm(emulated: emulator.Emulator, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 300)
    ).eval()
    images = [torch.randn(1, 3, 8, 8) for _ in range(3)]
    bundles = {
        target: qcompiler.compile(
            network, (images[0],), calibration=images, output=tmp_path / target, target=target
        ).bundle
        for target in ("x86-avx2", "arm-neon", "arm-dotprod")
    }
    image = images[0].numpy()
    image.tofile(tmp_path / "image.bin")
    (right,) = qcompiler.load(bundles["x86-avx2"], threads=1).run(image)
    for target, cpu in (("arm-neon", "cortex-a72"), ("arm-neon", "max"), ("arm-dotprod", "max")):
        ended = run_emulated(
            emulated, cpu, bundles[target], "-o", tmp_path / "out.bin", tmp_path / "image.bin"
        )
        assert ended.returncode == 0, ended.stderr
        assert np.fromfile(tmp_path / "out.bin", right.dtype).tobytes() == right.tobytes(), target
    refused = run_emulated(emulated, "cortex-a72", bundles["arm-dotprod"])
    assert refused.returncode == 1
    assert "lacks: asimddp; compile the model with --target arm-neon" in refused.stderr
