"""The machine instructions of each kernel in a linked library.

TVM exports a kernel ``name`` as ``__tvm_ffi_name``, which checks the arguments. The work is in local functions: the
body, and one function for every parallel loop, whose address is handed to the thread pool. The latter have no symbol,
so functions are taken from the unwind table, which has the extent of every one, and are attributed by reference: a
local function belongs to every kernel that refers to it, directly or through other local functions, by a call, a jump,
or by taking its address.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from elftools.common.exceptions import DWARFError, ELFError
from elftools.dwarf.callframe import FDE
from elftools.elf.elffile import ELFFile

from qcompiler.driver.machine_code import a64, x86
from qcompiler.driver.machine_code.instruction import Instruction
from qcompiler.errors import BuildError

_KERNEL_PREFIX = "__tvm_ffi_"
_EXECUTABLE = 0x4
"""ELF's section flag ``SHF_EXECINSTR``."""

_DECODERS: dict[str, Callable[[bytes, int], list[Instruction]]] = {
    "EM_X86_64": x86.decode,
    "EM_AARCH64": a64.decode,
}


_FORMS = {"vfmadd231ps": ("vfmadd132ps", "vfmadd213ps", "vfmadd231ps")}
"""Instructions with several mnemonics, which differ in the operand that the result overwrites."""


def forms(instruction: str) -> tuple[str, ...]:
    """The mnemonics that an instruction of a kernel may have in machine code."""
    return _FORMS.get(instruction, (instruction,))


@dataclass(frozen=True)
class Function:
    """A function of the library: its extent, its instructions, and the addresses that it refers to."""

    start: int
    end: int
    instructions: tuple[Instruction, ...]

    @property
    def references(self) -> frozenset[int]:
        return frozenset(a for i in self.instructions for a in (i.jump, i.refers) if a is not None)


def count_instructions(library: Path) -> dict[str, Counter[str]]:
    """Instructions of every kernel, its parallel loops and helpers included.

    Args:
        library: an x86-64 or 64-bit ARM shared library that TVM exported.

    Returns:
        For each kernel, by its name in TVM, how often each mnemonic (lower case, as ``vpdpbusd``) stands in
        its code. A helper that several kernels share counts in each.

    Raises:
        BuildError: the file is no library of these, exports no kernel, or has no unwind table.
    """
    return {
        name: Counter(i.mnemonic for function in functions for i in function.instructions)
        for name, functions in kernel_functions(library).items()
    }


def kernel_functions(library: Path) -> dict[str, list[Function]]:
    """The functions of every kernel, in the order of their addresses; arguments and errors as above."""
    kernels, functions = _read(library)
    starts = sorted(functions)
    result = {}
    for name, address in sorted(kernels.items(), key=lambda item: item[1]):
        if address not in functions:
            raise BuildError(
                f"{library}: kernel {name} is not in the unwind table; link it without removing it"
            )
        members = _reachable(functions, starts, address, frozenset(kernels.values()))
        result[name] = [functions[member] for member in sorted(members)]
    return result


def _read(library: Path) -> tuple[dict[str, int], dict[int, Function]]:
    """Addresses of the kernels by name, and all functions by address."""
    try:
        with library.open("rb") as file:
            elf = ELFFile(file)
            decode = _DECODERS.get(elf["e_machine"])
            if decode is None:
                raise BuildError(
                    f"{library} is for {elf['e_machine']}; what can be disassembled: {', '.join(_DECODERS)}"
                )
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
    return kernels, {start: _decode(start, size, code, decode) for start, size in extents}


def _decode(
    start: int, size: int, code: Mapping[int, bytes], decode: Callable[[bytes, int], list[Instruction]]
) -> Function:
    """The function of ``size`` bytes at address ``start``; ``code`` holds sections by their address."""
    base = max(address for address in code if address <= start)
    return Function(start, start + size, tuple(decode(code[base][start - base : start - base + size], start)))


def _reachable(
    functions: Mapping[int, Function], starts: list[int], root: int, kernels: frozenset[int]
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
