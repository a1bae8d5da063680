"""Counts the machine instructions of each kernel in a linked library.

TVM exports a kernel ``name`` as ``__tvm_ffi_name``, which checks the arguments. The work is in local
functions:
the body, and one function for every parallel loop, whose address is handed to the thread pool. The latter
have no symbol, so functions are taken from the unwind table, which has the extent of every one, and are
attributed by
reference: a local function belongs to every kernel that refers to it, directly or through other local
    functions, by a call, a jump, or by taking its address.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile
from iced_x86 import Decoder, FlowControl, Mnemonic, OpKind, Register

from qcompiler.errors import BuildError

_KERNEL_PREFIX = "__tvm_ffi_"
_EXECUTABLE = 0x4
"""ELF's section flag ``SHF_EXECINSTR``."""

_MNEMONICS = {value: name.lower() for name, value in vars(Mnemonic).items() if isinstance(value, int)}
_BRANCHES = frozenset({FlowControl.CALL, FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH})
_NEAR_TARGETS = frozenset({OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64})


@dataclass(frozen=True)
class _Function:
    """A function of the library, its own instructions, and the addresses that they refer to."""

    start: int
    end: int
    counts: Counter[str]
    references: frozenset[int]


def count_instructions(library: Path) -> dict[str, Counter[str]]:
    """Instructions of every kernel, its parallel loops and helpers included.

    Args:
        library: an x86-64 shared library that TVM exported.

    Returns:
        For each kernel, by its name in TVM, how often each mnemonic (lower case, as ``vpdpbusd``) stands in
        its code. A helper that several kernels share counts in each.

    Raises:
        BuildError: the file is no x86-64 library, exports no kernel, or has no unwind table.
    """
    kernels, functions = _read(library)
    starts = sorted(functions)
    result = {}
    for name, address in sorted(kernels.items(), key=lambda item: item[1]):
        if address not in functions:
            raise BuildError(
                f"{library}: kernel {name} is not in the unwind table; link it without removing it"
            )
        members = _reachable(functions, starts, address, frozenset(kernels.values()))
        result[name] = sum((functions[member].counts for member in members), Counter[str]())
    return result


def _read(library: Path) -> tuple[dict[str, int], dict[int, _Function]]:
    """Addresses of the kernels by name, and all functions by address."""
    try:
        with library.open("rb") as file:
            elf = ELFFile(file)
            if elf["e_machine"] != "EM_X86_64":
                raise BuildError(f"{library} is for {elf['e_machine']}; only x86-64 can be disassembled")
            symbols = elf.get_section_by_name(".dynsym")
            kernels = {
                symbol.name.removeprefix(_KERNEL_PREFIX): int(symbol["st_value"])
                for symbol in (symbols.iter_symbols() if symbols is not None else ())
                if symbol["st_info"]["type"] == "STT_FUNC" and symbol.name.startswith(_KERNEL_PREFIX)
            }
            if not kernels:
                raise BuildError(f"{library} exports no kernel: no function is named {_KERNEL_PREFIX}…")
            code = {s["sh_addr"]: s.data() for s in elf.iter_sections() if s["sh_flags"] & _EXECUTABLE}
            dwarf = elf.get_dwarf_info()
            entries = dwarf.EH_CFI_entries() if dwarf.has_EH_CFI() else ()
            extents = [
                (int(entry["initial_location"]), int(entry["address_range"]))
                for entry in entries
                if isinstance(entry, FDE)
            ]
    except (OSError, ELFError, DWARFError) as error:
        raise BuildError(f"{library} cannot be read as an ELF library: {error}") from error
    return kernels, {start: _decode(start, size, code) for start, size in extents}


def _decode(start: int, size: int, code: Mapping[int, bytes]) -> _Function:
    """The function of ``size`` bytes at address ``start``; ``code`` holds sections by their address."""
    base = max(address for address in code if address <= start)
    counts: Counter[int] = Counter()
    references = set()
    for instruction in Decoder(64, code[base][start - base : start - base + size], ip=start):
        counts[instruction.mnemonic] += 1
        if instruction.flow_control in _BRANCHES and instruction.op0_kind in _NEAR_TARGETS:
            references.add(instruction.near_branch_target)
        elif instruction.memory_base == Register.RIP:
            references.add(instruction.memory_displacement)
    named = Counter({_MNEMONICS[mnemonic]: count for mnemonic, count in counts.items()})
    return _Function(start, start + size, named, frozenset(references))


def _reachable(
    functions: Mapping[int, _Function], starts: list[int], root: int, kernels: frozenset[int]
) -> set[int]:
    """``root`` and the functions that it refers to, directly or not, other kernels excepted."""
    members = {root}
    pending = [root]
    while pending:
        for address in functions[pending.pop()].references:
            position = bisect_right(starts, address) - 1
            if position < 0 or address >= functions[starts[position]].end:
                continue  # data, or a function of another library
            target = starts[position]
            if target not in members and target not in kernels:
                members.add(target)
                pending.append(target)
    return members
