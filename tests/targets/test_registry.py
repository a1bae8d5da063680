"""The table of known targets, its agreement with LLVM and archspec, and the names that are refused."""

from __future__ import annotations

import platform
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from qcompiler.errors import TargetError
from qcompiler.targets import arm, cuda, registry
from qcompiler.targets.arm import features as arm_features
from qcompiler.targets.base import GpuTarget, Target
from qcompiler.targets.host import Host, read_host
from qcompiler.targets.registry import known, llvm_features, resolve, to_tvm
from qcompiler.targets.x86 import AVX2, AVX512, AVX512_VNNI, AVX_VNNI, MCPU_ALIASES, ZNVER4
from qcompiler.targets.x86 import features as x86_features
from qcompiler.targets.x86.features import cpuinfo_features

TABLE = [
    # name, instruction, bits, registers, MACs a cycle, microarchitecture
    ("x86-avx512-vnni", "vpdpbusd", 512, 32, 128, "x86_64_v4"),
    ("x86-avx-vnni", "vpdpbusd", 256, 16, 64, "x86_64_v3"),
    ("x86-avx512", "vpmaddwd", 512, 32, 64, "x86_64_v4"),
    ("x86-avx2", "vpmaddwd", 256, 16, 32, "x86_64_v3"),
    ("x86-haswell", "vpmaddwd", 256, 16, 16, "haswell"),
    ("x86-skylake", "vpmaddwd", 256, 16, 32, "skylake"),
    ("x86-alderlake", "vpdpbusd", 256, 16, 64, "alderlake"),
    ("x86-skylake-avx512", "vpmaddwd", 512, 32, 64, "skylake_avx512"),
    ("x86-cascadelake", "vpdpbusd", 512, 32, 128, "cascadelake"),
    ("x86-icelake-client", "vpdpbusd", 512, 32, 64, "icelake"),
    ("x86-icelake-server", "vpdpbusd", 512, 32, 128, "icelake"),
    ("x86-sapphirerapids", "vpdpbusd", 512, 32, 128, "sapphirerapids"),
    ("x86-znver2", "vpmaddwd", 256, 16, 16, "zen2"),
    ("x86-znver3", "vpmaddwd", 256, 16, 32, "zen3"),
    ("x86-znver4", "vpdpbusd", 512, 32, 64, "zen4"),
    ("x86-znver5", "vpdpbusd", 512, 32, 128, "zen5"),
    ("arm-i8mm", "smmla", 128, 32, 64, "aarch64"),
    ("arm-dotprod", "sdot", 128, 32, 32, "aarch64"),
    ("arm-neon", "smull", 128, 32, 8, "aarch64"),
    ("arm-cortex-a53", "smull", 128, 32, 8, "aarch64"),
    ("arm-cortex-a55", "sdot", 128, 32, 16, "armv8.2a"),
    ("arm-cortex-a72", "smull", 128, 32, 8, "cortex_a72"),
    ("arm-cortex-a76", "sdot", 128, 32, 32, "armv8.2a"),
    ("arm-cortex-a710", "smmla", 128, 32, 64, "armv9.0a"),
    ("arm-neoverse-n1", "sdot", 128, 32, 32, "neoverse_n1"),
    ("arm-neoverse-v1", "smmla", 128, 32, 128, "neoverse_v1"),
    ("arm-apple-m1", "sdot", 128, 32, 64, "m1"),
    ("cuda", "mma.sync", 128, 255, 1024, "turing"),
    ("cuda-sm75", "mma.sync", 128, 255, 1024, "turing"),
    ("cuda-sm80", "mma.sync", 128, 255, 2048, "ampere"),
    ("cuda-sm86", "mma.sync", 128, 255, 1024, "ampere"),
    ("cuda-sm89", "mma.sync", 128, 255, 1024, "ada"),
    ("cuda-sm90", "mma.sync", 128, 255, 4096, "hopper"),
]

UNASKED = {
    "64bit", "64bit-mode", "amx-bf16", "amx-int8", "amx-tile", "cldemote", "clflushopt", "clwb",
    "clzero", "cmov", "crc32", "cx8", "enqcmd", "fsgsbase", "fxsr", "hreset", "invpcid", "kl",
    "mmx", "movdir64b", "movdiri", "mwaitx", "nopl", "pconfig", "pku", "prefetchi", "prfchw",
    "ptwrite", "rdpid", "rdpru", "rdrnd", "rdseed", "serialize", "shstk", "sse", "sse2", "tsxldtrk",
    "uintr", "waitpkg", "wbnoinvd", "widekl", "x87", "xsave", "xsavec", "xsaveopt", "xsaves",
}  # fmt: skip
"""LLVM features that code never uses unless it names their instructions, or that every x86-64 processor has.

``crc32`` is a part of SSE4.2.
"""
ARM_UNASKED = {
    "CONTEXTIDREL2", "aes", "am", "bti", "ccdp", "ccidx", "ccpp", "crc", "dit", "el2vmsa", "el3", "ete", "fpac", "fptoint",
    "jsconv", "lor", "mpam", "mte", "nv", "pan", "pan-rwv", "pauth", "perfmon", "predres", "rand", "ras", "sb", "sel2",
    "sha2", "sm4", "spe", "specrestrict", "ssbs", "sve-bitperm", "tlb-rmi", "tracev8.4", "trbe", "uaops", "vh",
}  # fmt: skip
"""LLVM features of 64-bit ARM that code never uses unless it names their instructions."""
ARM_TUNING = (
    "a53", "a55", "a7", "addr-lsl-", "aggressive-", "alternate-", "alu-lsl-", "apple-", "arith-", "balance-", "cmp-bcc-",
    "disable-", "enable-", "fuse-", "max-interleave-", "neoverse", "no-", "predictable-", "slow-paired-", "store-pair-", "use-", "v8", "v9",
    "zcm-", "zcz-",
)  # fmt: skip
TUNING = (
    "allow-", "branchfusion", "erms", "false-deps-", "fast-", "faster-", "fsrm", "idivq-", "macrofusion",
    "no-bypass-", "prefer-", "sbb-dep-", "slow-", "tuning-", "vzeroupper",
)  # fmt: skip


def ids(target: Target) -> str:
    return target.name


def test_table_of_targets() -> None:
    found = [
        (t.name, t.instruction, t.vector_bits, t.vector_registers, t.macs_per_cycle, t.microarchitecture)
        for t in known()
    ]
    assert found == TABLE


PROCESSORS = [t for t in known() if t.family != "cuda"]


@pytest.mark.parametrize("target", PROCESSORS, ids=ids)
def test_requirements_are_what_llvm_may_use(target: Target) -> None:
    features = llvm_features(target)
    family, unasked, tuning = {
        "x86": (x86_features, UNASKED, TUNING),
        "arm": (arm_features, ARM_UNASKED, ARM_TUNING),
    }[target.family]
    assert set(target.required_features) == set(family.cpuinfo_features(features))
    unclassified = {f for f in features - unasked - family.CPUINFO_NAMES.keys() if not f.startswith(tuning)}
    assert not unclassified, "name them in CPUINFO_NAMES if code may use them, else here"


X86 = [t for t in known() if t.family == "x86"]
ARM = [t for t in known() if t.family == "arm"]


@pytest.mark.parametrize("target", ARM, ids=ids)
def test_arm_description_agrees_with_llvm_and_archspec(target: Target) -> None:
    from archspec.cpu import TARGETS

    features = llvm_features(target)
    assert ("i8mm" in features) == (target.instruction == "smmla")
    assert ("dotprod" in features) == (target.instruction in ("sdot", "smmla"))
    assert target.microarchitecture in TARGETS
    assert target.activations == "int8"
    assert target.opt_level == 2


@pytest.mark.parametrize("target", X86, ids=ids)
def test_description_agrees_with_llvm_and_archspec(target: Target) -> None:
    from archspec.cpu import TARGETS

    features = llvm_features(target)
    assert ("avx512vbmi" in features) == target.has_vbmi
    assert bool(features & {"avx512vnni", "avxvnni"}) == (target.instruction == "vpdpbusd")
    assert ("avx512f" in features) == (target.vector_bits == 512)
    assert "prefer-256-bit" not in features
    assert target.microarchitecture in TARGETS
    old = {"mmx", "sse", "sse2", "sse3"}  # every processor has them; cpuinfo calls the last one pni
    lacking = TARGETS[target.microarchitecture].features - set(target.required_features) - old
    vector = {f for f in lacking if f.startswith(("avx", "sse")) or f in ("fma", "f16c", "gfni")}
    assert not vector, "the chip has vector features that LLVM is not told of"


@pytest.mark.parametrize("target", known(), ids=ids)
def test_tvm_target(target: Target) -> None:
    made = to_tvm(target, 3)
    if isinstance(target, GpuTarget):
        assert (made.kind.name, made.attrs["arch"]) == ("cuda", target.architectures[0])
        assert int(made.attrs["max_shared_memory_per_block"]) == target.shared_bytes
        made = made.host
    assert (made.kind.name, made.attrs["mcpu"], int(made.attrs["num-cores"])) == ("llvm", target.mcpu, 3)
    assert int(made.attrs["opt-level"]) == target.opt_level
    assert tuple(str(f) for f in made.attrs.get("mattr", [])) == target.llvm_features


def test_aliases_lead_to_targets() -> None:
    assert {f"x86-{mcpu}" for mcpu in MCPU_ALIASES.values()} <= {t.name for t in known()}


def test_resolves_every_known_name() -> None:
    assert tuple(resolve(t.name) for t in known()) == known()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("zen4", "unknown target 'zen4'; did you mean x86-znver4? run 'qcompile targets'"),
        ("znver4", "did you mean x86-znver4?"),
        ("x86-avx512vnni", "did you mean x86-avx512-vnni or"),
        ("nativ", "did you mean native?"),
        ("9", "known: native, x86-avx512-vnni, x86-avx-vnni, .*; run 'qcompile targets'"),
        ("", "known: native"),
    ],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(TargetError, match=message.replace("?", r"\?")):
        resolve(name)


def test_processor_that_llvm_does_not_know_is_refused() -> None:
    with pytest.raises(TargetError, match="does not know mcpu 'znver99'"):
        to_tvm(replace(ZNVER4, mcpu="znver99"), 1)


def test_no_cores_are_refused() -> None:
    with pytest.raises(TargetError, match="cores is 0"):
        to_tvm(AVX2, 0)


@pytest.mark.parametrize(
    ("field", "value"), [("vector_bits", 384), ("l1_bytes", 0), ("macs_per_cycle", -1), ("opt_level", 4)]
)
def test_impossible_descriptions_are_refused(field: str, value: int) -> None:
    changes: dict[str, Any] = {field: value}
    with pytest.raises(TargetError, match=f"x86-avx2: {field} is {value}"):
        replace(AVX2, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ()}, "architectures are .*give at least one"),
        ({"architectures": ("sm_80", "sm_75")}, "architectures are .*ascending"),
        ({"multiprocessors": 0}, "multiprocessors is 0"),
        ({"vector_bits": 7}, "vector_bits is 7"),
    ],
)
def test_impossible_gpus_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=f"cuda-sm80: {message}"):
        replace(cuda.SM80, **changes)


def host(features: tuple[str, ...], l1: int | None = None, l2: int | None = None) -> Host:
    return Host("x86_64", frozenset(features), l1, l2)


def test_native_of_a_known_chip_is_its_description_with_the_machines_caches() -> None:
    found = registry._native(host(ZNVER4.required_features, 1 << 15, 1 << 21), "znver4")
    assert found == replace(ZNVER4, l1_bytes=1 << 15, l2_bytes=1 << 21)


def test_native_forbids_what_the_flags_hide() -> None:
    hidden = {"gfni", "avx512vbmi", "avx512_bf16"}
    found = registry._native(host(tuple(set(ZNVER4.required_features) - hidden)), "znver4")
    assert found.mcpu == "znver4"
    assert set(found.llvm_features) == {"-gfni", "-avx512vbmi", "-avx512bf16"}
    assert hidden.isdisjoint(found.required_features)
    assert set(found.required_features) == set(cpuinfo_features(llvm_features(found)))
    assert not found.has_vbmi
    assert found.l1_bytes == ZNVER4.l1_bytes


def test_native_without_the_chips_instruction_takes_the_next_generic_target() -> None:
    flags = tuple(set(ZNVER4.required_features) - {"avx512_vnni"})
    assert registry._native(host(flags), "znver4") == AVX512
    assert registry._native(host((*AVX2.required_features, "avx_vnni")), "znver4") == AVX_VNNI


def test_native_of_an_unlisted_chip_is_the_fastest_generic_target() -> None:
    assert registry._native(host(ZNVER4.required_features), "tomorrowslake") == AVX512_VNNI
    assert registry._native(host(AVX2.required_features), "generic") == AVX2


def test_native_of_a_chip_with_a_relative() -> None:
    assert registry._native(host((*AVX2.required_features, "pclmulqdq")), "broadwell").name == "x86-haswell"


def test_native_on_arm() -> None:
    n1 = Host("aarch64", frozenset(arm.NEOVERSE_N1.required_features), None, None)
    assert registry._native(n1, "neoverse-n1") == arm.NEOVERSE_N1
    assert registry._native(n1, "tomorrow-n9") == arm.DOTPROD
    with pytest.raises(
        TargetError, match=r"no target for this machine \(riscv64\); native is known on x86_64 and aarch64"
    ):
        registry._native(Host("riscv64", frozenset(), None, None), "generic-rv64")


def test_native_on_an_old_processor_is_refused() -> None:
    flags = tuple(set(AVX2.required_features) - {"avx2", "fma"})
    with pytest.raises(TargetError, match="it lacks avx2, fma; give the name"):
        registry._native(host(flags), "ivybridge")


def test_native_on_this_machine_needs_only_what_it_has() -> None:
    if platform.machine() != "x86_64" or not set(AVX2.required_features) <= read_host().features:
        pytest.skip("this processor has no target")
    target = resolve("native")
    assert set(target.required_features) <= read_host().features
    assert set(cpuinfo_features(llvm_features(target))) <= read_host().features


def test_descriptions_import_without_the_compiler() -> None:
    code = (
        "import sys; from qcompiler.targets.registry import known, resolve; resolve(known()[0].name); "
        "print([m for m in ('tvm', 'torch') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
