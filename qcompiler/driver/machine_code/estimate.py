"""Cycles of a loop without the chip: LLVM's machine code analyzer, or a count of what the chip's units can take.

Both take every load for a hit in the level-1 cache. They tell a loop that spills from one that does not; they are no
measurement.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from qcompiler.driver.machine_code.loops import Loop
from qcompiler.targets.arm.cores import REPRESENTATIVES, core_of
from qcompiler.targets.base import Target
from qcompiler.targets.cpu.cores import Core

ITERATIONS = 100
"""Turns of the loop that the analyzer simulates."""

_MODELS = {
    **REPRESENTATIVES,
    # LLVM's own model of it is that of Cortex-A57. Neoverse N1 is the same core with larger caches.
    "arm-cortex-a76": "neoverse-n1",
    "x86-avx2": "skylake",
    "x86-avx-vnni": "alderlake",
    "x86-avx512": "skylake-avx512",
    "x86-avx512-vnni": "icelake-server",
}
"""The processor whose model is used, where it is not the target's own: of generic targets the one that the peak is of."""

_WITHOUT_MODEL = frozenset({"arm-apple-m1"})
"""Targets that LLVM has no model of: for Apple's cores it takes that of 2013's Cyclone, with three vector units, not four."""

_OLDEST = 17
"""The first version of LLVM with models of the ARM processors here."""


_X86 = Core(issue=4, vector=3, load=2)
"""Units of x86 processors since Skylake, at the least."""


@dataclass(frozen=True)
class Estimate:
    """Cycles of one turn of a loop.

    Attributes:
        bound: what the busiest of the chip's units needs.
        simulated: what the analyzer says, dependencies included; None without it.
        method: the analyzer and its model of the processor, or None.
    """

    bound: float
    simulated: float | None
    method: str | None


@cache
def analyzer() -> tuple[Path, Path, int] | None:
    """``llvm-mca`` and ``llvm-objdump`` of the newest installed version that is new enough, with its number."""
    found = []
    for folder in map(Path, os.environ.get("PATH", "").split(os.pathsep)):
        for path in sorted(folder.glob("llvm-mca*")) if folder.is_dir() else ():
            suffix = path.name.removeprefix("llvm-mca")
            objdump = shutil.which(f"llvm-objdump{suffix}")
            version = _version(path) if objdump and re.fullmatch(r"(-\d+)?", suffix) else None
            if version is not None and objdump is not None:
                found.append((version, path, Path(objdump)))
    if not found or max(found)[0] < _OLDEST:
        return None
    version, path, objdump_path = max(found)
    return path, objdump_path, version


def _version(path: Path) -> int | None:
    result = subprocess.run([str(path), "--version"], capture_output=True, text=True, check=False)
    match = re.search(r"LLVM version (\d+)", result.stdout)
    return int(match[1]) if match else None


def estimate(library: Path, loop: Loop, target: Target) -> Estimate:
    """Cycles of a turn of ``loop``, which is in ``library``, compiled for ``target``."""
    tools = analyzer()
    bound = _counted(loop, target)
    if tools is not None and target.name not in _WITHOUT_MODEL:
        cpu = _MODELS.get(target.name, target.mcpu)
        cycles = _simulated(library, loop, target, tools[0], tools[1], cpu)
        if cycles is not None:
            return Estimate(bound, cycles, f"llvm-mca {tools[2]}, {cpu}")
    return Estimate(bound, None, None)


def _simulated(library: Path, loop: Loop, target: Target, mca: Path, objdump: Path, cpu: str) -> float | None:
    """What the analyzer says; None where it does not know the processor or an instruction."""
    command = [
        str(objdump), "-d", "--no-show-raw-insn", "--no-leading-addr", f"--mcpu={cpu}",
        f"--start-address={loop.start}", f"--stop-address={loop.end}", str(library),
    ]  # fmt: skip
    listed = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    comment = r"\s*//.*" if target.family == "arm" else r"\s*#.*"
    lines = [
        re.sub(rf"{comment}|\s*<[^>]*>", "", line)
        for line in listed.stdout.splitlines()
        if line.startswith((" ", "\t"))
    ]
    if listed.returncode != 0 or len(lines) < len(loop.instructions):
        return None
    triple = "aarch64-linux-gnu" if target.family == "arm" else "x86_64-linux-gnu"
    command = [str(mca), f"-mtriple={triple}", f"-mcpu={cpu}", f"-iterations={ITERATIONS}", "-instruction-info=0", "-resource-pressure=0"]  # fmt: skip
    if target.family == "arm":
        command.append("-mattr=+dotprod,+i8mm")
    # A branch's target is an address of the library, which may be out of reach from where the analyzer assembles.
    code = "\n".join(
        re.sub(r"^(\s*(?:b\S*|cbn?z|tbn?z|j\w+)\s+(?:.*,\s*)?)0x[0-9a-f]+$", r"\1.Lloop", line)
        for line in lines
    )
    ran = subprocess.run(command, input=f".Lloop:\n{code}\n", capture_output=True, text=True, check=False)
    match = re.search(r"Total Cycles:\s+(\d+)", ran.stdout)
    return int(match[1]) / ITERATIONS if ran.returncode == 0 and match else None


def _counted(loop: Loop, target: Target) -> float:
    """The cycles that the busiest unit needs."""
    units = core_of(target) if target.family == "arm" else _X86
    kinds = [i.kind for i in loop.instructions]
    vector = sum(k in ("vector", "vector load") for k in kinds)
    loads = sum(k in ("load", "vector load") for k in kinds)
    return max(
        loop.macs / target.macs_per_cycle,
        vector / units.vector,
        loads / units.load,
        sum(k == "store" for k in kinds),
        len(kinds) / units.issue,
    )
