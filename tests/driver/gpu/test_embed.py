"""Machine code takes the place of source in what TVM embeds, and nothing else changes."""

from __future__ import annotations

import os
import struct

import pytest

from qcompiler.driver.gpu import embed
from qcompiler.errors import BuildError


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def numbers(*values: int) -> bytes:
    return struct.pack(f"<{len(values) + 1}Q", len(values), *values)


def module(kind: bytes, code: bytes) -> bytes:
    """A module of GPU code with one function of two arguments."""
    function = text(b"f") + text(b"f_kernel") + struct.pack("<Q", 2) + b"\x03\x40\x01\x00" * 2
    function += struct.pack("<Q", 1) + text(b"blockIdx.x") + struct.pack("<Qi", 1, 0)
    return text(kind) + struct.pack("<Q", 1) + function + text(code)


def blob(content: bytes) -> bytes:
    """The host's module, one of another kind, and the GPU's."""
    modules = text(b"_lib") + text(b"relax.VMExecutable") + text(b"bytecode") + text(b"cuda") + text(content)
    return text(numbers(0, 1, 2, 2) + numbers(1, 2) + modules)


def test_source_becomes_code() -> None:
    seen = []

    def compile_source(source: str) -> bytes:
        seen.append(source)
        return b"\x7fcode"

    made = embed.replace_source(blob(module(b"cuda", b"the source")), compile_source)
    assert seen == ["the source"]
    assert made == blob(module(b"fatbin", b"\x7fcode"))


def test_code_that_is_no_source_is_refused() -> None:
    with pytest.raises(BuildError, match="GPU code of format 'ptx', expected its source"):
        embed.replace_source(blob(module(b"ptx", b"//")), lambda _: b"")


@pytest.mark.parametrize("cut", [1, 9, 60])
def test_unknown_layouts_are_refused(cut: int) -> None:
    whole = blob(module(b"cuda", b"s"))
    with pytest.raises(BuildError, match="a layout that is not known"):
        embed.replace_source(whole[:-cut], lambda _: b"")
    with pytest.raises(BuildError, match="a layout that is not known"):
        embed.replace_source(whole + b"x" * cut, lambda _: b"")


def test_source_alone_is_asked_for_within_the_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TVM_COMPILE_FORCE_FALLBACK", raising=False)
    with embed.source_only():
        assert os.environ["TVM_COMPILE_FORCE_FALLBACK"] == "1"
    assert "TVM_COMPILE_FORCE_FALLBACK" not in os.environ
    monkeypatch.setenv("TVM_COMPILE_FORCE_FALLBACK", "0")
    with embed.source_only():
        assert os.environ["TVM_COMPILE_FORCE_FALLBACK"] == "1"
    assert os.environ["TVM_COMPILE_FORCE_FALLBACK"] == "0"
