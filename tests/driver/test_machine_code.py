"""Instructions are counted per kernel, in its parallel loops too."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_bundle
import tvm
from tvm.script import tirx as T

from qcompiler.driver.link import link_shared
from qcompiler.driver.machine_code import a64
from qcompiler.driver.machine_code import estimate as estimates
from qcompiler.driver.machine_code.instruction import Instruction, Kind
from qcompiler.driver.machine_code.library import Function, count_instructions, kernel_functions
from qcompiler.driver.machine_code.loops import Loop, inner_loop, products
from qcompiler.errors import BuildError
from qcompiler.targets import registry


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


def cross(path: Path, triple: str) -> Path:
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    module = tvm.IRModule({"square_roots": square_roots, "sums": sums})
    tvm.compile(module, target=target).export_library(str(path), fcompile=link_shared)
    return path


def test_kernels_of_arm_are_told_apart(tmp_path: Path) -> None:
    functions = kernel_functions(cross(tmp_path / "arm.so", "aarch64-linux-gnu"))
    counts = count_instructions(tmp_path / "arm.so")
    assert 8 <= counts["sums"]["vector"] < 16  # 32 elements are eight vectors of four lanes
    assert counts["square_roots"]["vector"] >= 8
    assert len(functions["square_roots"]) > len(
        functions["sums"]
    )  # the parallel loop is a function of its own


def test_other_architecture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        BuildError, match=r"riscv\.so is for EM_RISCV; what can be disassembled: EM_X86_64, EM_AARCH64"
    ):
        count_instructions(cross(tmp_path / "riscv.so", "riscv64-linux-gnu"))


@pytest.mark.parametrize(
    ("word", "mnemonic", "kind"),
    [
        (0x4F9CE135, "sdot", "vector"),  # sdot v21.4s, v9.16b, v28.4b[0]
        (0x4E8F95AC, "sdot", "vector"),  # sdot v12.4s, v13.16b, v15.16b
        (0x4E8AA521, "smmla", "vector"),  # smmla v1.4s, v9.16b, v10.16b
        (0x0E22C020, "smull", "vector"),  # smull v0.8h, v1.8b, v2.8b
        (0x4E228020, "smlal", "vector"),  # smlal2 v0.8h, v1.16b, v2.16b
        (0x6E22C020, "vector", "vector"),  # umull2
        (0xAD402CCA, "load", "load"),  # ldp q10, q11, [x6]
        (0x3D800000, "store", "store"),  # str q0, [x0]
        (0x4D40C820, "vector load", "vector load"),  # ld1r { v0.4s }, [x1]
        (0x910040A5, "scalar", "scalar"),  # add x5, x5, #16
    ],
)
def test_encodings_of_arm(word: int, mnemonic: str, kind: str) -> None:
    (decoded,) = a64.decode(word.to_bytes(4, "little"), 0x1000)
    assert (decoded.mnemonic, decoded.kind) == (mnemonic, kind)


def test_references_of_arm() -> None:
    words = (0x14000002, 0x97FFFFFF, 0x54FFFFC1, 0xB0000000, 0x91004001, 0x10000040)
    decoded = a64.decode(b"".join(w.to_bytes(4, "little") for w in words), 0x1000)
    assert [i.jump for i in decoded] == [0x1008, 0x1000, 0x1000, None, None, None]  # b, bl, b.ne
    assert [i.calls for i in decoded] == [False, True, False, False, False, False]
    assert [i.refers for i in decoded] == [None, None, None, None, 0x2010, 0x101C]  # adrp and add; adr


def loop(instructions: list[Instruction]) -> Loop:
    return Loop(tuple(instructions), sum(map(products, instructions)))


def test_inner_loop_is_the_innermost_with_most_products() -> None:
    def at(place: int, mnemonic: str, kind: Kind = "vector", jump: int | None = None) -> Instruction:
        return Instruction(4 * place, mnemonic, kind, 4, 128, jump)

    code = [
        at(0, "sdot"), at(1, "sdot"), at(2, "branch", "branch", 4), at(3, "sdot"), at(4, "sdot"),
        at(5, "branch", "branch", 12), at(6, "vector"), at(7, "branch", "branch", 24), at(8, "branch", "branch", 0),
    ]  # fmt: skip
    found = inner_loop([Function(0, 36, tuple(code))])
    assert found is not None
    assert (found.start, found.end, found.macs) == (12, 24, 32)
    assert inner_loop([Function(0, 8, (at(0, "vector"), at(1, "branch", "branch", 0)))]) is None


def test_bound_is_that_of_the_busiest_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    estimates.analyzer.cache_clear()
    target = registry.resolve("arm-neoverse-n1")  # four instructions, two vectors and two loads a cycle
    dots = [Instruction(0, "sdot", "vector", 4, 128)] * 8
    loads = [Instruction(0, "load", "load", 4)] * 10
    moves = [Instruction(0, "scalar", "scalar", 4)] * 30
    assert estimates.estimate(Path("absent"), loop(dots), target).bound == 4
    assert estimates.estimate(Path("absent"), loop(dots + loads), target).bound == 5
    result = estimates.estimate(Path("absent"), loop(dots + loads + moves), target)
    assert (result.bound, result.simulated, result.method) == (12, None, None)
    estimates.analyzer.cache_clear()


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
