"""What the lowerings say of themselves: instruction, reasons, packed operands; and the code that comes of it."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import tvm
from qc_modules import const
from tvm import relax, tirx

from qcompiler import operators
from qcompiler.targets import registry
from qcompiler.targets.workload import OPAQUE, Workload, default_schedule
from qcompiler.targets.x86.lowering import LOWERINGS, Lowered

INSTRUCTIONS = {
    "x86-avx512-vnni": "vpdpbusd",
    "x86-avx-vnni": "vpdpbusd",
    "x86-znver4": "vpdpbusd",
    "x86-avx512": "vpmaddwd",
    "x86-avx2": "vpmaddwd",
}


def typed(call: relax.Call) -> relax.Call:
    return relax.BlockBuilder().normalize(call)


def var(shape: tuple[int, ...], dtype: str = "uint8") -> relax.Var:
    return relax.Var("x", relax.TensorType(shape, dtype))


def kernel_of(kernel: Workload | tirx.PrimFunc) -> tirx.PrimFunc:
    """``kernel`` itself if it is scheduled, or with its default schedule."""
    return default_schedule(kernel).function if isinstance(kernel, Workload) else kernel


def conv(channels: int = 16, out: int = 64, groups: int = 1, padding: int = 1) -> relax.Call:
    weight = np.ones((out, channels // groups, 3, 3), np.int8)
    args = [
        var((1, 8, 8, channels)),
        const(weight),
        const(np.zeros(out, np.int32)),
        const(np.ones(out, np.float32)),
    ]
    return typed(
        operators.call(
            "qc.conv2d", args, strides=[1, 1], padding=[padding] * 4, dilation=[1, 1], groups=groups, layout="NHWC",
            pad_value=0, zero_point=0, lo=0, hi=255, residual_shift=0, out_dtype="uint8", accumulator_bound=10**6,
        )
    )  # fmt: skip


def lower(call: relax.Call, name: str) -> Lowered:
    lowered = LOWERINGS[str(call.op.name)](call, registry.resolve(name))
    assert lowered is not None
    return lowered


def assembly(lowered: Lowered, name: str) -> str:
    function = kernel_of(lowered.kernel).with_attr("global_symbol", "kernel")
    built = tvm.compile(tvm.IRModule({"kernel": function}), target=registry.to_tvm(registry.resolve(name), 1))
    return str(built.mod.inspect_source("asm"))


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_a_convolution_runs_on_the_targets_instruction(name: str) -> None:
    lowered = lower(conv(), name)
    assert lowered.instruction == INSTRUCTIONS[name]
    assert lowered.reason is None
    code = assembly(lowered, name)
    assert INSTRUCTIONS[name] in code
    assert "vpmaddubsw" not in code, "its pair sums saturate"


def test_depthwise_has_no_dot_product_and_says_so() -> None:
    lowered = lower(conv(32, 32, 32), "x86-avx512")
    assert lowered.instruction is None
    assert "depthwise" in str(lowered.reason)


@pytest.mark.parametrize("name", ["x86-avx512-vnni", "x86-avx-vnni"])
def test_depthwise_multiplies_rows_of_its_window_with_vnni(name: str) -> None:
    lowered = lower(conv(64, 64, 64, padding=0), name)
    assert lowered.instruction == "vpdpbusd"
    assert "vpdpbusd" in assembly(lowered, name)
    assert LOWERINGS["qc.conv2d"](conv(6, 6, 6, padding=0), registry.resolve(name)).instruction is None  # type: ignore[union-attr]


def test_operands_are_packed_to_whole_vectors() -> None:
    lowered = lower(conv(8, 20), "x86-avx512")
    shapes = [tuple(int(d) for d in a.ty.shape) for a in lowered.args]
    blocks, lanes = shapes[2]
    assert lanes in (8, 16)
    assert blocks == -(-20 // lanes)
    assert shapes[1] == (blocks, 3, 3, 2, lanes, 4)
    assert shapes[3] == (blocks, lanes)
    kernel = kernel_of(lowered.kernel)
    declared = [tuple(int(d) for d in kernel.params[k].shape) for k in range(len(shapes))]
    assert declared == shapes


def test_kernels_are_not_scheduled_or_fused_again() -> None:
    for call in (
        conv(),
        conv(16, 16, 16),
        typed(operators.call("qc.dequantize", [var((4, 8))], scale=1.0, zero_point=0)),
    ):
        attrs = kernel_of(lower(call, "x86-avx2").kernel).attrs
        assert attrs["tirx.is_scheduled"]
        assert int(attrs["op_pattern"]) == OPAQUE
        assert "global_symbol" not in attrs


def test_tables_use_byte_permutations_where_the_chip_has_them() -> None:
    call = typed(operators.call("qc.lut", [var((4, 64)), const(np.arange(256, dtype=np.uint8))]))
    # LLVM chooses which operand is overwritten.
    assert re.search(r"\bvperm[it]2b\b", assembly(lower(call, "x86-znver4"), "x86-znver4"))
    plain = replace(registry.resolve("x86-znver4"), has_vbmi=False)
    assert "vpermi2var" not in str(kernel_of(LOWERINGS["qc.lut"](call, plain).kernel))  # type: ignore[union-attr]


def test_concatenation_is_left_to_tvm_along_other_axes_and_of_other_dtypes() -> None:
    for dtype, axis, ours in (
        ("uint8", 3, True),
        ("uint8", -1, True),
        ("uint8", 1, False),
        ("float32", 3, False),
    ):
        call = typed(relax.op.concat([var((1, 2, 3, 4), dtype), var((1, 2, 3, 4), dtype)], axis=axis))
        lowered = LOWERINGS["relax.concat"](call, registry.resolve("x86-avx2"))
        assert (lowered is not None) == ours


def test_every_integer_operator_has_a_kernel() -> None:
    assert set(LOWERINGS) >= operators.INTEGER_OPERATORS
