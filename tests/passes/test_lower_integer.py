from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from qc_modules import assert_equal, const, make, operators
from tvm import relax, te

from qcompiler import operators as qc
from qcompiler.passes.graph import bindings
from qcompiler.passes.lower_integer import LowerInteger
from qcompiler.targets import registry
from qcompiler.targets.borders import CONV2D_OF_CONCAT, QUANTIZE_TO_NHWC
from qcompiler.targets.workload import Scheduled, Workload, default_schedule

TARGET = registry.resolve("x86-avx2")
ROWS = ((3, 8), "uint8")
WEIGHT = np.ones((4, 8), np.int8)


@dataclass(frozen=True)
class Lowered:
    kernel: Any
    args: list[Any]
    instruction: str | None = None
    reason: str | None = None
    arithmetic: str | None = None
    with_border: Any = None


def copy_kernel(shape: tuple[int, ...], out: tuple[int, ...], dtype: str = "uint8") -> Any:
    x = te.placeholder(shape, dtype, name="x")
    y = te.compute(out, lambda *i: x[i[0] % shape[0], i[1] % shape[1]], name="y")
    return te.create_prim_func([x, y]).without_attr("global_symbol")


def dense(x: relax.Expr) -> relax.Call:
    return qc.call(
        "qc.dense", [x, const(WEIGHT), const(np.zeros(4, np.int32)), const(np.ones(4, np.float32))], zero_point=0, lo=0,
        hi=255, residual_shift=0, out_dtype="uint8", accumulator_bound=8 * 255,
    )  # fmt: skip


def lower_dense(call: relax.Call, _target: Any) -> Lowered:
    return Lowered(copy_kernel((3, 8), (3, 4)), [call.args[0]], "vpmaddwd", None)


def test_a_call_becomes_a_kernel_and_a_record() -> None:
    lower = LowerInteger(TARGET, {"qc.dense": lower_dense})
    after = lower(make(lambda e, x: dense(x), ROWS))
    assert operators(after) == ["relax.call_tir"]
    (layer,) = lower.layers
    assert (layer.operator, layer.kernel, layer.dtype, layer.shape) == ("dense", "qc_dense", "uint8", (3, 4))
    assert (layer.macs, layer.accumulator_bound, layer.instruction) == (3 * 4 * 8, 2040, "vpmaddwd")


def test_a_workload_is_scheduled_once_and_kept_for_tuning() -> None:
    asked: list[str] = []

    def scheduler(workload: Workload) -> Scheduled:
        asked.append(workload.name)
        return Scheduled(default_schedule(workload).function, "tuned")

    def lowering(tunable: bool) -> Any:
        workload = Workload("dense", "small", copy_kernel((3, 8), (3, 4)), (lambda sch: None,), tunable)
        return lambda call, target: Lowered(workload, [call.args[0]])

    module = make(lambda e, a, b: (dense(a), dense(b)), ROWS, ROWS)
    lower = LowerInteger(TARGET, {"qc.dense": lowering(True)}, scheduler)
    lower(module)
    assert asked == ["small"]
    assert [layer.schedule for layer in lower.layers] == ["tuned", "tuned"]
    (kernel,) = lower.tunable.values()
    assert kernel.call.op.name == "qc.dense"
    fixed = LowerInteger(TARGET, {"qc.dense": lowering(False)}, scheduler)
    fixed(module)
    assert asked == ["small"]
    assert [layer.schedule for layer in fixed.layers] == [None, None]
    assert fixed.tunable == {}


def test_equal_calls_share_a_kernel() -> None:
    lower = LowerInteger(TARGET, {"qc.dense": lower_dense})
    after = lower(make(lambda e, a, b: (dense(a), dense(b)), ROWS, ROWS))
    assert len([f for f in after.functions if f.name_hint != "main"]) == 1
    assert [layer.kernel for layer in lower.layers] == ["qc_dense", "qc_dense"]


def test_operators_without_a_lowering_and_refused_calls_are_left_alone() -> None:
    module = make(lambda e, x: dense(x), ROWS)
    for lowerings in ({}, {"qc.dense": lambda call, target: None}):
        lower = LowerInteger(TARGET, lowerings)
        assert_equal(lower(module), module)
        assert lower.layers == []


def test_quantization_of_an_nchw_input_writes_channels_last_itself() -> None:
    def build(emit, x):  # type: ignore[no-untyped-def]
        y = emit(qc.call("qc.quantize", [x], inv_scale=1.0, zero_point=0, lo=0, hi=255))
        return relax.op.permute_dims(y, [0, 2, 3, 1])

    def lower_fused(call: relax.Call, _target: Any) -> Lowered:
        x = te.placeholder((1, 3, 4, 5), "float32", name="x")
        y = te.compute((1, 4, 5, 3), lambda b, i, j, k: x[b, k, i, j].astype("uint8"), name="y")
        return Lowered(te.create_prim_func([x, y]).without_attr("global_symbol"), [call.args[0]])

    lower = LowerInteger(TARGET, {QUANTIZE_TO_NHWC: lower_fused})
    after = lower(make(build, ((1, 3, 4, 5), "float32")))
    assert operators(after) == ["relax.call_tir"]
    (binding,) = (b for b in bindings(after) if isinstance(b.value, relax.Call))
    assert binding.value.args[1].fields[0].same_as(after["main"].params[0])
    assert [layer.shape for layer in lower.layers] == [(1, 4, 5, 3)]


PIXELS = ((1, 2, 3, 4), "uint8")


def table(x: relax.Expr) -> relax.Call:
    return qc.call("qc.lut", [x, const(np.arange(256, dtype=np.uint8))])


def depthwise(x: relax.Expr, channels: int) -> relax.Call:
    return qc.call(
        "qc.conv2d",
        [x, const(np.ones((channels, 1, 1, 1), np.int8)), const(np.zeros(channels, np.int32)),
         const(np.ones(channels, np.float32))],
        strides=[1, 1], padding=[0, 0, 0, 0], dilation=[1, 1], groups=channels, pad_value=0, zero_point=0, lo=0, hi=255,
        residual_shift=0, out_dtype="uint8", accumulator_bound=255, layout="NHWC",
    )  # fmt: skip


def lower_pieces(call: relax.Call, _target: Any) -> Lowered:
    sources = [p.args[0] if isinstance(p, relax.Call) else p for p in call.args[0].fields]
    xs = [te.placeholder((1, 2, 3, 4), "uint8", name=f"x{k}") for k in range(len(sources))]
    y = te.compute((1, 2, 3, 4 * len(xs)), lambda b, i, j, k: xs[0][b, i, j, k % 4], name="y")
    return Lowered(te.create_prim_func([*xs, y]).without_attr("global_symbol"), sources)


def concatenated(axis: int = 3) -> Any:
    def build(emit, a, b):  # type: ignore[no-untyped-def]
        joined = emit(relax.op.concat([a, emit(table(b))], axis=axis))
        return depthwise(joined, 8 if axis == 3 else 4)

    return build


def test_a_convolution_reads_what_is_concatenated_for_it() -> None:
    lower = LowerInteger(TARGET, {CONV2D_OF_CONCAT: lower_pieces})
    after = lower(make(concatenated(), PIXELS, PIXELS))
    assert operators(after) == ["relax.call_tir"]
    (binding,) = (b for b in bindings(after) if isinstance(b.value, relax.Call))
    given = list(binding.value.args[1].fields)
    assert all(arg.same_as(param) for arg, param in zip(given, after["main"].params, strict=True))
    (layer,) = lower.layers
    assert (layer.operator, layer.shape, layer.macs) == (CONV2D_OF_CONCAT, (1, 2, 3, 8), 2 * 3 * 8)


def test_a_concatenation_that_something_else_reads_stays() -> None:
    def read_twice(emit, a, b):  # type: ignore[no-untyped-def]
        joined = emit(relax.op.concat([a, b], axis=3))
        return depthwise(joined, 8), table(joined)

    for build in (read_twice, concatenated(axis=2)):
        module = make(build, PIXELS, PIXELS)
        assert_equal(LowerInteger(TARGET, {CONV2D_OF_CONCAT: lower_pieces})(module), module)
    refused = make(concatenated(), PIXELS, PIXELS)
    assert_equal(LowerInteger(TARGET, {CONV2D_OF_CONCAT: lambda call, target: None})(refused), refused)


def test_a_table_that_something_else_reads_is_computed_once() -> None:
    def build(emit, a, b):  # type: ignore[no-untyped-def]
        looked_up = emit(table(b))
        return depthwise(emit(relax.op.concat([a, looked_up], axis=3)), 8), looked_up

    lower = LowerInteger(TARGET, {CONV2D_OF_CONCAT: lower_pieces})
    after = lower(make(build, PIXELS, PIXELS))
    assert operators(after) == ["qc.lut", "relax.call_tir"]
