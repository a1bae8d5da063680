"""Decodes A64, the instructions of 64-bit ARM, as far as kernels are counted: multiplies by name, the rest by kind."""

from __future__ import annotations

import struct

from qcompiler.driver.machine_code.instruction import Instruction, Kind

_NAMED = (
    ("sdot", 0xBFE0FC00, 0x0E809400),
    ("sdot", 0xBFC0F400, 0x0F80E000),  # by element
    ("smmla", 0xFFE0FC00, 0x4E80A400),
    ("smull", 0xBF20FC00, 0x0E20C000),
    ("smlal", 0xBF20FC00, 0x0E208000),
    ("sadalp", 0xBF3FFC00, 0x0E206800),
)
"""Mnemonics with the mask and the value of their encodings, from the Arm Architecture Reference Manual."""

_B, _B_COND, _CBZ, _TBZ = (0x7C000000, 0x14000000), (0xFF000010, 0x54000000), (0x7E000000, 0x34000000), (0x7E000000, 0x36000000)  # fmt: skip
_ADRP, _ADR = (0x9F000000, 0x90000000), (0x9F000000, 0x10000000)
_ADD_IMMEDIATE = (0xFF800000, 0x91000000)
_LANE_LOAD = (0xBF400000, 0x0D400000)
"""Loads of one lane, or of one element into all lanes."""


def decode(code: bytes, start: int) -> list[Instruction]:
    """The instructions of ``code``, which is at address ``start``."""
    result = []
    pages: dict[int, int] = {}
    for k, (word,) in enumerate(struct.iter_unpack("<I", code[: len(code) // 4 * 4])):
        address = start + 4 * k
        jump = _jump(word, address)
        refers = _reference(word, address, pages)
        kind = _kind(word)
        name = next((n for n, mask, value in _NAMED if word & mask == value), kind)
        width = (128 if word >> 30 & 1 else 64) if kind == "vector" else 0
        calls = _is(word, _B) and word >> 31 == 1
        writes = word & 31 if kind == "vector" else None
        result.append(Instruction(address, name, kind, 4, width, jump, calls, refers, writes))
    return result


def _is(word: int, encoding: tuple[int, int]) -> bool:
    mask, value = encoding
    return word & mask == value


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def _jump(word: int, address: int) -> int | None:
    if _is(word, _B):
        return address + 4 * _signed(word & 0x3FFFFFF, 26)
    if _is(word, _B_COND) or _is(word, _CBZ):
        return address + 4 * _signed(word >> 5 & 0x7FFFF, 19)
    if _is(word, _TBZ):
        return address + 4 * _signed(word >> 5 & 0x3FFF, 14)
    return None


def _reference(word: int, address: int, pages: dict[int, int]) -> int | None:
    """The address that an ``adr``, or an ``add`` after an ``adrp``, takes; ``pages`` remembers the latter by register."""
    register = word & 31
    if _is(word, _ADR) or _is(word, _ADRP):
        immediate = _signed((word >> 5 & 0x7FFFF) << 2 | word >> 29 & 3, 21)
        if _is(word, _ADR):
            return address + immediate
        pages[register] = (address & ~0xFFF) + (immediate << 12)
    elif _is(word, _ADD_IMMEDIATE) and (word >> 5 & 31) in pages:
        return pages[word >> 5 & 31] + ((word >> 10 & 0xFFF) << (12 if word >> 22 & 1 else 0))
    return None


def _kind(word: int) -> Kind:
    group = word >> 25 & 15  # the top level of the encoding
    if group in (0b0100, 0b0110, 0b1100, 0b1110):
        if _is(word, _LANE_LOAD):
            return "vector load"
        return "load" if word >> 22 & 1 else "store"
    if group in (0b0111, 0b1111):
        return "vector"
    return "branch" if group in (0b1010, 0b1011) else "scalar"
