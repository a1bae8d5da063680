"""An instruction as far as anybody here asks."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["vector", "load", "store", "vector load", "scalar", "branch"]
"""What an instruction needs: vector units, load or store units, a load unit and vector units, integer units, the branch unit."""


class Instruction(NamedTuple):
    """An instruction; a library has very many of them, so it is a tuple.

    Attributes:
        address: where it is.
        mnemonic: lower case; of instructions that nobody counts, their kind.
        kind: what it needs.
        size: bytes of the code.
        width: bits of the vector that it works on; 0 for none.
        jump: the address it may go to, within the library; None for all but direct branches.
        calls: it is a call.
        refers: an address in the library that it takes; None for most.
        writes: number of the vector register that it writes; None for none, and for an instruction of no vector unit.
    """

    address: int
    mnemonic: str
    kind: Kind
    size: int
    width: int = 0
    jump: int | None = None
    calls: bool = False
    refers: int | None = None
    writes: int | None = None
