from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qc_modules import Built, const, dq, dq_weight, in_thread, make, operators, q, reference, run
from tvm import relax

from qcompiler.errors import PassError
from qcompiler.passes import pipeline
from qcompiler.reference import interpret
from qcompiler.targets import registry
from qcompiler.targets.x86.lowering import LOWERINGS

IMAGE = ((1, 3, 8, 8), "float32")
WEIGHT = np.random.default_rng(0).integers(-127, 128, (16, 3, 3, 3)).astype(np.int8)


def network(emit: Any, x: relax.Expr) -> relax.Expr:
    y = emit(dq(emit(q(x, 0.05, 120)), 0.05, 120))
    y = emit(relax.op.nn.conv2d(y, emit(dq_weight(WEIGHT, np.full(16, 0.01))), padding=(1, 1)))
    y = emit(relax.op.add(y, const(np.linspace(-1, 1, 16).reshape(1, 16, 1, 1), "float32")))
    y = emit(dq(emit(q(emit(relax.op.nn.relu(y)), 0.1)), 0.1))
    y = emit(relax.op.nn.max_pool2d(y, pool_size=(2, 2), strides=(2, 2)))
    return relax.op.nn.softmax(emit(dq(emit(q(y, 0.1)), 0.1)), axis=1)


def through(dump: pipeline.Dump) -> tuple[Any, Any, Any]:
    target = registry.resolve("native")
    tvm_target = registry.to_tvm(target, 2)
    integer = pipeline.to_integer(make(network, IMAGE), dump)
    physical = pipeline.to_physical(integer.module, target, tvm_target, LOWERINGS, dump)
    return integer, physical, pipeline.to_machine(physical.module, tvm_target, dump)


def test_a_dump_has_a_numbered_file_a_pass(tmp_path: Path) -> None:
    through(pipeline.Dump(tmp_path / "ir"))
    names = sorted(p.name for p in (tmp_path / "ir").iterdir())
    assert [n.split("-")[0] for n in names] == [f"{k:02d}" for k in range(len(names))]
    passes = [n.split("-", 1)[1].removesuffix(".py") for n in names]
    assert passes[:4] == ["Imported", "Canonicalize", "UseUnsignedActivations", "PropagateQuantization"]
    order = [passes.index(p) for p in ("RewriteToInteger", "PlanLayout", "LowerInteger", "ScheduleFloat")]
    assert order == sorted(order)
    for path in (tmp_path / "ir").iterdir():
        assert "def main" in path.read_text(), path.name


def test_nothing_is_written_without_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline.to_integer(make(network, IMAGE), pipeline.Dump(None))
    assert not list(tmp_path.iterdir())


def test_what_is_true_after_each_phase() -> None:
    integer, physical, _ = through(pipeline.Dump(None))
    assert operators(integer.module) == [
        "qc.quantize", "qc.conv2d", "qc.max_pool2d", "qc.dequantize", "relax.nn.softmax"
    ]  # fmt: skip
    assert set(operators(physical.module)) <= {"relax.call_tir", "relax.reshape"}
    assert [layer.operator for layer in physical.layers if layer.instruction] == ["conv2d"]


def test_a_float_tail_computes_what_it_should() -> None:
    integer, _, machine = through(pipeline.Dump(None))
    x = np.random.default_rng(1).normal(size=IMAGE[0]).astype(np.float32)
    native = registry.resolve("native")
    executable = relax.build(machine, registry.to_tvm(native, 2), relax_pipeline=None)
    ((actual,),) = run(Built(executable, native), [[x]])
    (expected,) = in_thread(lambda: interpret(integer.module, [x]))
    assert not expected.exact
    np.testing.assert_allclose(actual, expected.array, rtol=1e-4, atol=1e-6)


def test_a_module_with_control_flow_is_refused() -> None:
    module = make(network, IMAGE)
    broken = relax.transform.ToNonDataflow()(module)
    with pytest.raises(PassError, match="one block without control flow"):
        pipeline.to_integer(broken, pipeline.Dump(None))


def test_the_integer_part_is_exact() -> None:
    module = make(lambda e, x: relax.op.concat([e(q(x, 0.1, 3)), e(q(x, 0.1, 3))], axis=1), IMAGE)
    integer = pipeline.to_integer(module, pipeline.Dump(None))
    assert operators(integer.module) == ["qc.quantize", "relax.concat"]  # equal nodes are one
    assert reference(integer.module, [[np.zeros(IMAGE[0], np.float32)]])[0][0].dtype == np.uint8
