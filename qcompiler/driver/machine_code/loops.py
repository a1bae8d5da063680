"""The inner loop of a kernel: where its products are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qcompiler.driver.machine_code.instruction import Instruction
from qcompiler.driver.machine_code.library import Function

_PRODUCT_BITS = {"vpdpbusd": 8, "vpmaddwd": 16, "sdot": 8, "smmla": 4}
"""Bits of the vector for each product, by instruction."""

_ACCUMULATING = frozenset({"vpdpbusd", "sdot", "smmla", "sadalp"})
"""Instructions whose result is an accumulator."""


@dataclass(frozen=True)
class Loop:
    """Adjacent instructions that a branch at their end repeats.

    Attributes:
        instructions: of one turn.
        macs: multiply-accumulates of one turn.
    """

    instructions: tuple[Instruction, ...]
    macs: int

    @property
    def accumulators(self) -> int:
        """Registers of accumulators; 0 where products are added by instructions of their own."""
        return len({i.writes for i in self.instructions if i.mnemonic in _ACCUMULATING})

    @property
    def start(self) -> int:
        return self.instructions[0].address

    @property
    def end(self) -> int:
        """The address after the last instruction."""
        return self.instructions[-1].address + self.instructions[-1].size


def products(instruction: Instruction) -> int:
    """8-bit multiply-accumulates of one instruction; 0 for any that kernels are not counted by."""
    if instruction.mnemonic in ("smull", "smlal"):
        return 8  # a vector of int16, of either half of the operands
    bits = _PRODUCT_BITS.get(instruction.mnemonic)
    return instruction.width // bits if bits else 0


def inner_loop(functions: Sequence[Function]) -> Loop | None:
    """The innermost loop with the most accumulators, and of these the one with the most products in a turn.

    That is the loop of a whole tile: those of narrower tiles at the edges may be unrolled more often. None where no
    product is in a loop.
    """
    found = [loop for function in functions for loop in _innermost(function)]
    # The tile of an odd last pixel multiplies as much as a whole one, half of it in vain, but reads less.
    return max(found, key=lambda loop: (loop.accumulators, loop.macs, len(loop.instructions)), default=None)


def _innermost(function: Function) -> list[Loop]:
    """Loops with products that have no other such loop in them."""
    code = function.instructions
    places = {instruction.address: k for k, instruction in enumerate(code)}
    spans = sorted(
        {
            (places[i.jump], k)
            for k, i in enumerate(code)
            if i.jump is not None and not i.calls and i.jump in places and places[i.jump] <= k
        },
        key=lambda span: span[1] - span[0],
    )
    chosen: list[tuple[int, int]] = []
    loops = []
    for first, last in spans:
        macs = sum(products(i) for i in code[first : last + 1])
        if macs and not any(first <= a and b <= last for a, b in chosen):
            chosen.append((first, last))
            loops.append(Loop(code[first : last + 1], macs))
    return loops
