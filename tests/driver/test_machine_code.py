"""Instructions are counted per kernel, in its parallel loops too."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_bundle
import tvm
from tvm.script import tirx as T

from qcompiler.driver.link import link_shared
from qcompiler.driver.machine_code.library import count_instructions
from qcompiler.errors import BuildError


def build(path: Path, mcpu: str = "x86-64-v3", **functions: tvm.tirx.PrimFunc) -> Path:
    target = tvm.target.Target({"kind": "llvm", "mcpu": mcpu})
    module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in functions.items()})
    tvm.compile(module, target=target).export_library(str(path), fcompile=link_shared)
    return path


@T.prim_func(s_tir=True)
def square_roots(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")) -> None:
    for i in T.parallel(2):
        for j in T.vectorized(32):
            y[i * 32 + j] = T.sqrt(x[i * 32 + j])


@T.prim_func(s_tir=True)
def sums(x: T.Buffer((32,), "float32"), y: T.Buffer((32,), "float32")) -> None:
    for i in T.vectorized(32):
        y[i] = x[i] + x[i]


@T.prim_func(s_tir=True)
def two_loops(x: T.Buffer((64,), "float32"), y: T.Buffer((64,), "float32")) -> None:
    for i in T.parallel(2):
        for j in T.vectorized(32):
            y[i * 32 + j] = T.sqrt(x[i * 32 + j])
    for i in T.parallel(2):
        for j in T.vectorized(32):
            y[i * 32 + j] = y[i * 32 + j] / x[i * 32 + j]


def test_each_kernel_has_its_own_instructions_with_all_parallel_loops(tmp_path: Path) -> None:
    counts = count_instructions(
        build(tmp_path / "k.so", square_roots=square_roots, sums=sums, two_loops=two_loops)
    )
    assert set(counts) == {"square_roots", "sums", "two_loops"}
    assert counts["sums"]["vaddps"] == 4  # 32 elements are four vectors of eight lanes
    assert counts["square_roots"]["vsqrtps"] >= 4  # a copy for every unrolled turn
    assert counts["two_loops"]["vsqrtps"] >= 4
    assert counts["two_loops"]["vdivps"] >= 4
    strangers = {"sums": "vsqrtps", "square_roots": "vdivps", "two_loops": "vaddps"}
    assert {name: counts[name][mnemonic] for name, mnemonic in strangers.items()} == dict.fromkeys(
        strangers, 0
    )


def test_kernels_of_a_relax_module(tmp_path: Path) -> None:
    counts = count_instructions(small_bundle.library(tmp_path / "model.so"))
    assert set(counts) == {"add", "matmul", "relu", "relu1"}
    assert counts["relu"]["vmaxps"] > 0
    assert counts["add"]["vaddps"] > 0
    assert counts["add"]["vmaxps"] == 0


def test_other_architecture_is_refused(tmp_path: Path) -> None:
    target = tvm.target.Target({"kind": "llvm", "mtriple": "aarch64-linux-gnu"})
    path = tmp_path / "arm.so"
    tvm.compile(tvm.IRModule({"sums": sums}), target=target).export_library(str(path), fcompile=link_shared)
    with pytest.raises(BuildError, match=r"arm\.so is for EM_AARCH64; only x86-64"):
        count_instructions(path)


def test_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("text")
    with pytest.raises(BuildError, match=r"text\.so cannot be read as an ELF library"):
        count_instructions(tmp_path / "text.so")
    with pytest.raises(BuildError, match=r"absent\.so cannot be read"):
        count_instructions(tmp_path / "absent.so")


def test_library_without_kernels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"data")
    options = ["-m", "elf_x86_64", "--format=binary"]
    link_shared(str(tmp_path / "data.so"), [str(tmp_path / "blob")], options)
    with pytest.raises(BuildError, match="exports no kernel"):
        count_instructions(tmp_path / "data.so")
