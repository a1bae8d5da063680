"""Which variables a fused kernel computes."""

from __future__ import annotations

import numpy as np
import pytest
import tvm
from tvm import relax

from qcompiler.errors import PassError
from qcompiler.passes.trace_fusion import TraceFusion


def legalized(branches: int = 2) -> tvm.IRModule:
    """Branches of the same shape, each ``relu(x @ w)``, whose sum is returned."""
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            results = []
            for k in range(branches):
                weight = relax.const(np.full((8, 8), k, "float32"))
                product = builder.emit(relax.op.matmul(x, weight), f"product_{k}_")
                results.append(builder.emit(relax.op.nn.relu(product), f"bounded_{k}_"))
            total = results[0]
            for other in results[1:]:
                total = builder.emit(relax.op.add(total, other), "total")
            output = builder.emit_output(total)
        builder.emit_func_output(output)
    with tvm.target.Target("llvm"):
        return relax.transform.AnnotateTIROpPattern()(relax.transform.LegalizeOps()(builder.get()))


def test_each_kernel_knows_what_it_computes() -> None:
    trace, module = TraceFusion(), legalized()
    trace.before(module)
    trace.after(relax.transform.FuseOps()(module))
    # Both branches call one fused function; their weights tell them apart.
    assert sorted(name for names in trace.origins for name in names) == [
        "bounded_0_", "bounded_1_", "product_0_", "product_1_", "total",
    ]  # fmt: skip
    for names in trace.origins:
        assert len({name.split("_")[1] for name in names if "_" in name}) <= 1


def test_without_fusion_each_call_is_its_own() -> None:
    trace, module = TraceFusion(), legalized()
    trace.before(module)
    trace.after(module)
    assert trace.origins == (
        ("product_0_",), ("bounded_0_",), ("product_1_",), ("bounded_1_",), ("total",),
    )  # fmt: skip


def test_a_call_that_was_not_there_is_a_fault() -> None:
    trace = TraceFusion()
    trace.before(legalized(1))
    with pytest.raises(PassError, match="was not there"):
        trace.after(legalized(2))


def test_fields_of_a_kernel_with_several_results_are_followed() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((4, 8), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            halves = builder.emit(relax.op.split(x, 2, axis=1), "halves")
            results = [
                builder.emit(
                    relax.op.nn.relu(relax.op.exp(builder.emit(relax.TupleGetItem(halves, k)))), f"r_{k}_"
                )
                for k in range(2)
            ]
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output)
    with tvm.target.Target("llvm"):
        module = relax.transform.AnnotateTIROpPattern()(relax.transform.LegalizeOps()(builder.get()))
    trace = TraceFusion()
    trace.before(module)
    trace.after(relax.transform.FuseOps()(module))
    names = [name for names in trace.origins for name in names]
    assert names[0] == "halves"
    assert {"r_0_", "r_1_"} <= set(names)
