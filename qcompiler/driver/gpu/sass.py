"""Counts the instructions of each kernel in machine code for GPUs, with NVIDIA's disassembler from pip."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from qcompiler.driver.gpu.limits import kernel_of
from qcompiler.driver.gpu.nvrtc import INSTALL, toolkit
from qcompiler.errors import BuildError

_FUNCTION = re.compile(r"^\s*\.section\s+\.text\.(\w+)")
_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)*)")

MNEMONICS = {"mma.sync": "IMMA", "dp4a": "IDP.4A"}
"""What the machine instruction is called that an instruction of PTX becomes; further parts of its name say of what."""


def count_instructions(cubin: bytes) -> dict[str, Counter[str]]:
    """How often each instruction stands in each function of a cubin, by the function's name and the full mnemonic.

    Raises:
        BuildError: the disassembler is missing or fails.
    """
    tool = toolkit() / "bin" / "nvdisasm"
    if not tool.is_file():
        raise BuildError(f"there is no disassembler {tool}; run {INSTALL}")
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        path = Path(folder) / "kernels.cubin"
        path.write_bytes(cubin)
        result = subprocess.run(
            [tool, "-c", path], capture_output=True, text=True, errors="replace", check=False
        )
    if result.returncode != 0:
        raise BuildError(f"disassembling GPU code failed: {result.stderr.strip() or result.returncode}")
    counts: dict[str, Counter[str]] = {}
    function = ""
    for line in result.stdout.splitlines():
        section = _FUNCTION.match(line)
        if section:
            function = section[1]
            counts[function] = Counter()
            continue
        instruction = _INSTRUCTION.match(line)
        if instruction and function:
            counts[function][instruction[1]] += 1
    return counts


def counts_by_kernel(cubin: bytes) -> dict[str, Counter[str]]:
    """The instructions of PTX in ``MNEMONICS``, counted for each kernel under its name in TVM."""
    result: dict[str, Counter[str]] = {}
    for function, instructions in count_instructions(cubin).items():
        found = result.setdefault(kernel_of(function), Counter())
        for name, mnemonic in MNEMONICS.items():
            found[name] += sum(
                n for m, n in instructions.items() if m == mnemonic or m.startswith(mnemonic + ".")
            )
    return result
