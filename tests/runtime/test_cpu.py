"""CPU features are read from cpuinfo, and a CPU that lacks some is refused with advice."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from qcompiler.errors import CpuError
from qcompiler.runtime.cpu import check_cpu, cpu_features, cpu_name
from qcompiler.runtime.manifest import Manifest, TargetNeeds, Versions

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="bundles are for x86")


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nmodel name\t: Old Chip 9\nflags\t\t: sse2 avx2 fma\n\n"
        "processor\t: 1\nmodel name\t: Old Chip 9\nflags\t\t: sse2 avx2\n"
    )
    return file


def manifest(*features: str, family: str = "x86", alternatives: tuple[TargetNeeds, ...] = ()) -> Manifest:
    target = {"name": "t", "family": family, "required_features": list(features)}
    return Manifest((), (), target, Versions("", "", "", "", ""), alternatives=alternatives)


def test_features_are_those_of_every_core(cpuinfo: Path) -> None:
    assert cpu_features(cpuinfo) == {"sse2", "avx2"}
    assert cpu_name(cpuinfo) == "Old Chip 9"


def test_machine_without_flags_has_no_features(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\n")
    assert cpu_features(tmp_path / "cpuinfo") == frozenset()


def test_sufficient_cpu_passes(cpuinfo: Path) -> None:
    check_cpu(manifest("sse2", "avx2"), cpuinfo)


def test_message_names_missing_features_the_cpu_and_the_best_target_it_can_run(cpuinfo: Path) -> None:
    others = tuple(
        TargetNeeds(*t) for t in (("best", ("avx512f",)), ("good", ("avx2",)), ("slow", ("sse2",)))
    )
    with pytest.raises(CpuError, match=r"Old Chip 9 lacks: avx512f, fma; compile with --target good, or"):
        check_cpu(manifest("avx2", "avx512f", "fma", alternatives=others), cpuinfo)


def test_message_without_a_target_that_runs(cpuinfo: Path) -> None:
    with pytest.raises(CpuError, match="qcompile targets"):
        check_cpu(manifest("avx512f", alternatives=(TargetNeeds("best", ("avx512f",)),)), cpuinfo)


def test_other_architecture_is_refused(cpuinfo: Path) -> None:
    with pytest.raises(CpuError, match=r"bundle is for arm Linux \(target t\); this machine is x86_64"):
        check_cpu(manifest(family="arm"), cpuinfo)


def test_features_of_arm_are_read(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(
        "processor : 0\nFeatures : fp asimd asimddp\nprocessor : 1\nFeatures : fp asimd\n"
    )
    assert cpu_features(tmp_path / "cpuinfo") == {"fp", "asimd"}
