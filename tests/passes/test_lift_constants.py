"""Large constants become parameters; small ones stay where a kernel reads them."""

from __future__ import annotations

from typing import Any

import numpy as np
import small_bundle
import tvm
from qc_modules import assert_equal, in_thread
from tvm import relax

from qcompiler.passes import pipeline
from qcompiler.passes.graph import MAIN, constant
from qcompiler.passes.lift_constants import LiftConstants

LARGE = np.arange(2048, dtype=np.float32).reshape(1, 2048)
SMALL = np.arange(4, dtype=np.int32)
TARGET = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 1})


def module(large: list[relax.Expr], small: relax.Expr, parameters: list[relax.Var]) -> tvm.IRModule:
    """Calls a kernel on ``large`` and ``small``, a function of TVM's on ``small``; returns a tuple with ``large``."""
    kernel = relax.GlobalVar("kernel")
    x = relax.Var("x", relax.TensorType([4], "float32"))
    bindings = []

    def bind(name: str, value: relax.Expr) -> relax.Var:
        variable = relax.Var(name, relax.AnyType())
        bindings.append(relax.VarBinding(variable, value))
        return variable

    for index, expr in enumerate(large):
        bind(f"call{index}", relax.Call(kernel, [x, expr, small]))
    result = bind("result", relax.Tuple([x, large[0]]))
    body = relax.SeqExpr([relax.BindingBlock(bindings)], result)
    return tvm.IRModule({MAIN: relax.Function([x, *parameters], body, relax.AnyType(), True)})


def test_large_constants_are_parameters_and_equal_ones_share_one() -> None:
    parameters = [relax.Var(f"constant_{k}", relax.TensorType(LARGE.shape, "float32")) for k in range(2)]
    lift = LiftConstants()
    after = lift(module([constant(LARGE), constant(LARGE + 1), constant(LARGE)], constant(SMALL), []))
    first, second = parameters
    assert_equal(after, module([first, second, first], constant(SMALL), parameters))
    assert [values.tobytes() for values in lift.constants] == [LARGE.tobytes(), (LARGE + 1).tobytes()]


def test_without_large_constants_nothing_changes() -> None:
    x = relax.Var("x", relax.TensorType([4], "float32"))
    result = relax.Var("result", relax.AnyType())
    call = relax.Call(relax.GlobalVar("kernel"), [x, constant(SMALL)])
    body = relax.SeqExpr([relax.BindingBlock([relax.VarBinding(result, call)])], result)
    before = tvm.IRModule({MAIN: relax.Function([x], body, relax.AnyType(), True)})
    lift = LiftConstants()
    assert_equal(lift(before), before)
    assert lift.constants == []


def test_what_is_returned_is_a_parameter_however_small() -> None:
    """The results are the same with and without the pass, and the arguments are not checked a second time."""
    machine = pipeline.to_machine(small_bundle.module(), TARGET, pipeline.Dump(None))
    lift = LiftConstants(min_bytes=1 << 20)
    lifted = lift(machine)
    assert [values.tobytes() for values in lift.constants] == [small_bundle.constant().tobytes()]
    lifted = LiftConstants()(machine)
    assert len(lifted[MAIN].params) == 2 + len(small_bundle.constants())
    assert len(checks(lifted)) == len(checks(machine))

    def run(module: tvm.IRModule, *arguments: Any) -> list[Any]:
        executable = relax.build(module, TARGET, relax_pipeline=None)
        call = relax.VirtualMachine(executable, tvm.cpu())["main"]
        return [output.numpy() for output in call(*map(tvm.runtime.tensor, arguments))]

    inputs = small_bundle.inputs()
    with_pass = in_thread(lambda: run(lifted, *inputs, *small_bundle.constants()))
    without = in_thread(lambda: run(machine, *inputs))
    assert [a.tobytes() for a in with_pass] == [a.tobytes() for a in without]


def checks(module: tvm.IRModule) -> list[str]:
    values = [binding.value for block in module[MAIN].body.blocks for binding in block.bindings]
    calls = [value for value in values if isinstance(value, relax.Call)]
    names = [str(call.op.global_symbol) for call in calls if isinstance(call.op, relax.ExternFunc)]
    return [name for name in names if name in ("vm.builtin.check_tensor_info", "vm.builtin.match_shape")]
