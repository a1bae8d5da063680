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


def decode(code: bytes, start: int) -> list[Instruction]:
    """The instructions of ``code``, which is at address ``start``."""
    info = InstructionInfoFactory()
    result = []
    for decoded in Decoder(64, code, ip=start):
        jump = refers = None
        if decoded.flow_control in _BRANCHES and decoded.op0_kind in _NEAR_TARGETS:
            jump = decoded.near_branch_target
        elif decoded.memory_base == Register.RIP:
            refers = decoded.memory_displacement
        calls = decoded.flow_control == FlowControl.CALL
        name, kind = _MNEMONICS[decoded.mnemonic], _kind(decoded, info)
        width = _width(decoded)
        result.append(Instruction(decoded.ip, name, kind, decoded.len, width, jump, calls, refers))
    return result


def _width(decoded: Decoded) -> int:
    """Bits of the vector register that is written first."""
    if decoded.op_count == 0 or decoded.op0_kind != OpKind.REGISTER:
        return 0
    return _VECTORS.get(decoded.op0_register, 0)


def _kind(decoded: Decoded, info: InstructionInfoFactory) -> Kind:
    if decoded.flow_control != FlowControl.NEXT:
        return "branch"
    vector = any(
        decoded.op_kind(k) == OpKind.REGISTER and decoded.op_register(k) in _VECTORS
        for k in range(decoded.op_count)
    )
    memory = any(decoded.op_kind(k) == OpKind.MEMORY for k in range(decoded.op_count))
    if memory and decoded.mnemonic != Mnemonic.LEA:
        if any(m.access in _WRITES for m in info.info(decoded).used_memory()):
            return "store"
        moves = _MNEMONICS[decoded.mnemonic].startswith(("vmov", "vpbroadcast", "vbroadcast", "mov"))
        return "load" if moves or not vector else "vector load"
    return "vector" if vector else "scalar"
