"""What this CPU can do, read from ``/proc/cpuinfo``, and whether it can run a bundle."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

from qcompiler.errors import CpuError
from qcompiler.runtime.manifest import Manifest

CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "amd64")
_MACHINES = {"x86": _X86, "arm": ("aarch64", "arm64"), "cuda": _X86}
"""Names that ``platform.machine`` gives, by target family; for a GPU those of its host."""


def cpu_features(cpuinfo: Path = CPUINFO) -> frozenset[str]:
    """Feature flags that every core has, named as in ``/proc/cpuinfo``; empty where the file lists none."""
    cores = [frozenset(value.split()) for key, value in _entries(cpuinfo) if key in ("flags", "Features")]
    return frozenset.intersection(*cores) if cores else frozenset()


def cpu_name(cpuinfo: Path = CPUINFO) -> str:
    """The CPU's name for people, such as ``AMD EPYC 9R14``."""
    return next((value for key, value in _entries(cpuinfo) if key == "model name"), platform.machine())


def check_cpu(manifest: Manifest, cpuinfo: Path = CPUINFO) -> None:
    """Refuses a bundle that this machine cannot run.

    Raises:
        CpuError: the bundle is for another architecture or operating system, or needs features that this CPU
            lacks; the message names them, this CPU, and a target that it can run.
    """
    family = str(manifest.target["family"])
    machine = platform.machine()
    if sys.platform != "linux" or machine.lower() not in _MACHINES.get(family, ()):
        raise CpuError(
            f"bundle is for {family} Linux (target {manifest.target_name}); this machine is {machine} "
            f"{sys.platform}; compile the model for a target of this machine (qcompile targets)"
        )
    present = cpu_features(cpuinfo)
    missing = [feature for feature in manifest.required_features if feature not in present]
    if missing:
        runnable = [t.name for t in manifest.alternatives if present.issuperset(t.required_features)]
        advice = (
            f"compile with --target {runnable[0]}" if runnable else "run 'qcompile targets' for other targets"
        )
        raise CpuError(
            f"bundle for target {manifest.target_name} needs CPU features that {cpu_name(cpuinfo)} lacks: "
            f"{', '.join(missing)}; {advice}, or on this machine with --target native"
        )


def _entries(cpuinfo: Path) -> Iterator[tuple[str, str]]:
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            yield key.strip(), value.strip()
