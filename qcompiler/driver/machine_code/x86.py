"""Decodes x86-64."""

from __future__ import annotations

from iced_x86 import (
    Decoder,
    FlowControl,
    InstructionInfoFactory,
    Mnemonic,
    OpAccess,
    OpKind,
    Register,
)
from iced_x86 import (
    Instruction as Decoded,
)

from qcompiler.driver.machine_code.instruction import Instruction, Kind

_MNEMONICS = {value: name.lower() for name, value in vars(Mnemonic).items() if isinstance(value, int)}
_BRANCHES = frozenset({FlowControl.CALL, FlowControl.CONDITIONAL_BRANCH, FlowControl.UNCONDITIONAL_BRANCH})
_NEAR_TARGETS = frozenset({OpKind.NEAR_BRANCH16, OpKind.NEAR_BRANCH32, OpKind.NEAR_BRANCH64})
_WIDTHS = {"XMM": 128, "YMM": 256, "ZMM": 512}
_VECTORS = {
    value: _WIDTHS[name[:3]]
    for name, value in vars(Register).items()
    if isinstance(value, int) and name[:3] in _WIDTHS
}
"""Bits of the vector registers."""
_WRITES = frozenset({OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE})
_INFO = InstructionInfoFactory()
_forms: dict[tuple[int, ...], tuple[Kind, int]] = {}
"""Kinds and widths that were found, by encoding and kinds of the operands."""


def decode(code: bytes, start: int) -> list[Instruction]:
    """The instructions of ``code``, which is at address ``start``."""
    result = []
    for decoded in Decoder(64, code, ip=start):
        jump = refers = None
        if decoded.flow_control in _BRANCHES and decoded.op0_kind in _NEAR_TARGETS:
            jump = decoded.near_branch_target
        elif decoded.memory_base == Register.RIP:
            refers = decoded.memory_displacement
        calls = decoded.flow_control == FlowControl.CALL
        # What an instruction needs follows from its encoding and the kinds of its operands; to find out takes long.
        form = (decoded.code, decoded.op0_kind, decoded.op1_kind, decoded.op2_kind, decoded.op3_kind)
        if form not in _forms:
            _forms[form] = _kind(decoded), _width(decoded)
        kind, width = _forms[form]
        name = _MNEMONICS[decoded.mnemonic]
        writes = int(decoded.op0_register) if width else None
        result.append(Instruction(decoded.ip, name, kind, decoded.len, width, jump, calls, refers, writes))
    return result


def _width(decoded: Decoded) -> int:
    """Bits of the vector register that is written first."""
    if decoded.op_count == 0 or decoded.op0_kind != OpKind.REGISTER:
        return 0
    return _VECTORS.get(decoded.op0_register, 0)


def _kind(decoded: Decoded) -> Kind:
    if decoded.flow_control != FlowControl.NEXT:
        return "branch"
    vector = any(
        decoded.op_kind(k) == OpKind.REGISTER and decoded.op_register(k) in _VECTORS
        for k in range(decoded.op_count)
    )
    memory = any(decoded.op_kind(k) == OpKind.MEMORY for k in range(decoded.op_count))
    if memory and decoded.mnemonic != Mnemonic.LEA:
        if any(m.access in _WRITES for m in _INFO.info(decoded).used_memory()):
            return "store"
        moves = _MNEMONICS[decoded.mnemonic].startswith(("vmov", "vpbroadcast", "vbroadcast", "mov"))
        return "load" if moves or not vector else "vector load"
    return "vector" if vector else "scalar"
