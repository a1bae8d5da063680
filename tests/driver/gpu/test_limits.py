"""Kernels that ask for more than a GPU has are refused by name, whatever asks: TVM's verifier or the assembler's report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tvm
from torch import nn
from tvm import tirx

import qcompiler
from qcompiler.driver.gpu import embed, limits
from qcompiler.driver.gpu.limits import Kernels, Resources
from qcompiler.errors import BuildError
from qcompiler.targets import cuda, registry
from qcompiler.targets.cuda.kernel import Kernel, shared, store


def kernel(*, threads: int = 64, apart: int = 1, dtype: str = "int32") -> tirx.PrimFunc:
    """A kernel that writes its threads' numbers in elements of ``dtype``, by way of words of shared memory so far apart."""
    made = Kernel()
    with made:
        out = made.argument("out", (threads,), dtype)
        with made.launch((1,), threads) as (_, thread):
            memory = shared(threads * apart)
            store(memory, thread * apart, thread)
            value = memory[thread * apart]
            lanes = int(dtype.partition("x")[2] or 1)
            store(out, thread, tirx.Broadcast(value, lanes) if lanes > 1 else value)
    return made.function()


def compiled(function: tirx.PrimFunc, layers: dict[str, list[str]]) -> Kernels:
    module = tvm.IRModule({"copy": function.with_attr("global_symbol", "copy")})
    with embed.source_only(), limits.verified(cuda.SM80, layers) as kernels:
        tvm.compile(module, target=registry.to_tvm(cuda.SM80, 1))
    return kernels


def test_a_kernel_within_the_limits_passes() -> None:
    assert compiled(kernel(), {}).threads == {"copy_kernel": 64}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threads": 2048}, r"Extent of threadIdx.x \(2048\) is greater than maximum allowed \(1024\)"),
        ({"apart": 200}, r"Used shared memory per block \(5\d{4}\) is greater than the allowed maximum \(49152\)"),
        ({"dtype": "int32x8"}, r"greater than the maximum number of vector bytes \(16\)"),
    ],
)  # fmt: skip
def test_verifier_names_layer_and_limit(options: dict[str, int], message: str) -> None:
    with pytest.raises(BuildError, match=rf"kernel copy_kernel of layer first, second: .*{message}"):
        compiled(kernel(**options), {"copy": ["first", "second"]})  # type: ignore[arg-type]


def test_every_kernel_of_a_compilation_is_verified(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A chip whose blocks have 200 threads: the element-wise kernels have 256, and the compilation names one of them."""
    small = replace(cuda.SM80, block_threads=200)
    monkeypatch.setattr(registry, "resolve", lambda name: small)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU()).eval()
    x = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    with pytest.raises(BuildError, match=r"of layer .*threads per block .256. is greater .*200.*--no-log"):
        qcompiler.compile(model, (x,), calibration=[x], output=tmp_path / "bundle", target="cuda-sm80")
    assert not (tmp_path / "bundle").exists()


def test_report_of_the_assembler() -> None:
    report = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'big_kernel' for 'sm_80'
ptxas info    : Function properties for big_kernel
ptxas         .     1280 bytes stack frame, 2088 bytes spill stores, 2088 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 1280 bytes cumulative stack size, 372 bytes cmem[0]
ptxas info    : Compiling entry function 'small_kernel_1' for 'sm_80'
ptxas info    : Function properties for small_kernel_1
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 1 barriers, 1024 bytes smem, 364 bytes cmem[0]
"""
    found = limits.read_resources(report)
    assert found == {"big_kernel": Resources(64, 0, 2088), "small_kernel_1": Resources(12, 1024, 0)}
    with pytest.raises(BuildError, match="in a form that is not known"):
        limits.read_resources(report.replace("Used 12 registers", "12 registers are used"))


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(256, 0, 0), "registers of a thread are 256; allowed: 255 on sm_86"),
        (Resources(65, 0, 0), "registers of a block are 73728; allowed: 65536 on sm_86"),
        (Resources(8, 49153, 0), "bytes of shared memory of a block are 49153; allowed: 49152 on sm_86"),
    ],
)
def test_machine_code_beyond_the_limits_is_refused(resources: Resources, message: str) -> None:
    kernels = Kernels(cuda.SM80, {"conv": ["layer1"]}, {"conv_kernel_1": 1024})
    kernels.check({"sm_80": {"conv_kernel_1": Resources(64, 49152, 0)}})
    with pytest.raises(BuildError, match=f"kernel conv_kernel_1 of layer layer1: {message}"):
        kernels.check({"sm_86": {"conv_kernel_1": resources}})


def test_spills_are_told_and_unseen_kernels_refused(caplog: pytest.LogCaptureFixture) -> None:
    kernels = Kernels(cuda.SM80, {"conv": ["layer1"]}, {"conv_kernel": 32})
    kernels.check({"sm_80": {"conv_kernel": Resources(255, 0, 16)}})
    assert "kernel conv_kernel of layer layer1 writes 16 bytes a thread to memory on sm_80" in caplog.text
    with pytest.raises(BuildError, match="kernel other was not seen by TVM's verifier"):
        kernels.check({"sm_80": {"other": Resources(8, 0, 0)}})
