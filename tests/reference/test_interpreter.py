"""Walking the module: tuples, functions, traces, exactness, the fallback, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, te

from qcompiler import operators
from qcompiler.errors import InputError, VerificationError
from qcompiler.reference import Interpreter, interpret

op = relax.op
ADD = {"a_multiplier": 1, "b_multiplier": 1, "offset": 0, "shift": 0, "lo": 0, "hi": 255}
X = np.arange(8, dtype=np.uint8).reshape(2, 4)


def doubled(x: Any) -> Any:
    return operators.call("qc.add", [x, x], **ADD)


def test_one_interpreter_runs_many_times(make_module: Any) -> None:
    interpreter = Interpreter(make_module(lambda b, v: b.emit(doubled(b.emit(doubled(v[0])))), [X]))
    for factor in (1, 3):
        (value,) = interpreter.run([X * factor])
        np.testing.assert_array_equal(value.array, 4 * X * factor, strict=True)


def test_nested_tuples_are_flattened_and_traced(make_module: Any) -> None:
    def build(builder: Any, v: list[Any]) -> Any:
        halves = builder.emit(op.split(v[0], 2, axis=1), name_hint="halves")
        second = builder.emit(doubled(builder.emit(halves[1], name_hint="item")), name_hint="second")
        return relax.Tuple([relax.Tuple([second, v[0]]), relax.const(np.float32(3.0)), halves[0]])

    interpreter = Interpreter(make_module(build, [X]))
    trace = interpreter.trace([X])
    expected = [2 * X[:, 2:], X, np.float32(3.0), X[:, :2]]
    for value, array in zip(trace.outputs, expected, strict=True):
        np.testing.assert_array_equal(value.array, array)
    assert list(trace.intermediates) == ["x0", "halves[0]", "halves[1]", "second"]
    np.testing.assert_array_equal(trace.intermediates["second"].array, 2 * X[:, 2:])
    for value, again in zip(interpreter.run([X]), trace.outputs, strict=True):
        np.testing.assert_array_equal(value.array, again.array)


def test_outputs_are_the_callers_own(make_module: Any) -> None:
    x = X.copy()
    module = make_module(lambda b, v: b.emit(op.reshape(v[0], (8,))), [x])
    interpret(module, [x])[0].array[:] = 99
    np.testing.assert_array_equal(x, X)


def test_calls_of_functions_are_followed() -> None:
    builder = relax.BlockBuilder()
    inner = relax.Var("a", relax.TensorType(X.shape, "uint8"))
    with builder.function("helper", [inner], private=True):
        builder.emit_func_output(builder.emit(doubled(inner), name_hint="twice"))
    x = relax.Var("x", relax.TensorType(X.shape, "uint8"))
    with builder.function("main", [x]):
        helper = builder.get().get_global_var("helper")
        once = builder.emit(relax.Call(helper, [x]))
        builder.emit_func_output(builder.emit(relax.Call(helper, [once])))
    trace = Interpreter(builder.get()).trace([X])
    np.testing.assert_array_equal(trace.outputs[0].array, 4 * X)
    assert list(trace.intermediates) == ["x", "twice", "twice#2"]


def test_a_float_operator_makes_what_follows_inexact(make_module: Any) -> None:
    def build(builder: Any, v: list[Any]) -> Any:
        real = builder.emit(
            operators.call("qc.dequantize", [v[0]], scale=0.5, zero_point=0), name_hint="real"
        )
        soft = builder.emit(op.nn.softmax(real), name_hint="soft")
        attrs = {"inv_scale": 255.0, "zero_point": 0, "lo": 0, "hi": 255}
        again = builder.emit(operators.call("qc.quantize", [soft], **attrs), name_hint="again")
        exact = builder.emit(operators.call("qc.quantize", [real], **attrs), name_hint="exact")
        return relax.Tuple([again, exact, soft])

    again, exact, soft = interpret(make_module(build, [X]), [X])
    assert (again.exact, exact.exact, soft.exact) == (False, True, False)
    powers = np.exp(X.astype(np.float64) * 0.5)
    np.testing.assert_allclose(soft.array, powers / powers.sum(axis=1, keepdims=True), rtol=1e-5)


def test_fallback_takes_constants_tuples_and_tensor_functions(make_module: Any) -> None:
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    weight = np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)

    def build(builder: Any, v: list[Any]) -> Any:
        product = builder.emit(op.matmul(v[0], relax.const(weight)))
        stacked = builder.emit(op.stack([product, product], axis=0))
        return builder.emit_te(
            lambda t: te.compute(t.shape, lambda *i: t(*i) + 1.0, name="plus_one"), stacked
        )

    (value,) = interpret(make_module(build, [x]), [x])
    assert not value.exact
    np.testing.assert_allclose(value.array, np.stack([x @ weight + 1] * 2), rtol=1e-5)


def test_fallback_on_integers_is_exact(make_module: Any) -> None:
    module = make_module(lambda b, v: b.emit(op.flip(v[0], axis=1)), [X])
    (value,) = interpret(module, [X])
    assert value.exact
    np.testing.assert_array_equal(value.array, X[:, ::-1])


def test_float_to_integer_is_inexact(make_module: Any) -> None:
    x = np.array([1.7, -2.2], np.float32)
    (value,) = interpret(make_module(lambda b, v: b.emit(op.astype(v[0], "int32")), [x]), [x])
    assert value.array.tolist() == [1, -2]
    assert not value.exact


def test_an_operator_that_nothing_computes_is_named(make_module: Any) -> None:
    module = make_module(
        lambda b, v: b.emit(op.call_dps_packed("nowhere", v, relax.TensorType((2, 4), "uint8"))), [X]
    )
    with pytest.raises(VerificationError, match=r"operator relax\.call_dps_packed: .* TVM cannot compile"):
        Interpreter(module)


def test_an_operator_without_a_legalization_is_named(make_module: Any) -> None:
    module = make_module(lambda b, v: b.emit(op.hint_on_device(v[0], tvm.cpu())), [X])
    with pytest.raises(VerificationError, match=r"operator relax\.hint_on_device: neither"):
        Interpreter(module)


def test_control_flow_is_refused() -> None:
    builder = relax.BlockBuilder()
    condition = relax.Var("c", relax.TensorType((), "bool"))
    x = relax.Var("x", relax.TensorType((2, 4), "uint8"))
    with builder.function("main", [condition, x]):
        builder.emit_func_output(builder.emit(relax.If(condition, x, x)))
    with pytest.raises(VerificationError, match="control flow"):
        Interpreter(builder.get())


def test_recursion_is_refused() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 4), "uint8"))
    name = tvm.ir.GlobalVar("main")
    call = relax.Call(name, [x], None)
    body = relax.SeqExpr([relax.BindingBlock([relax.VarBinding(relax.Var("y", x.ty), call)])], x)
    module = tvm.IRModule({name: relax.Function([x], body, x.ty)})
    del builder
    with pytest.raises(VerificationError, match="recursion"):
        Interpreter(module)


def test_missing_function_names_those_there_are(make_module: Any) -> None:
    module = make_module(lambda b, v: b.emit(doubled(v[0])), [X])
    with pytest.raises(VerificationError, match="'other'; it has: main"):
        interpret(module, [X], function="other")


def test_inputs_must_match(make_module: Any) -> None:
    interpreter = Interpreter(make_module(lambda b, v: b.emit(doubled(v[0])), [X]))
    for inputs in ([], [X, X], [X.T], [X.astype(np.int8)]):
        with pytest.raises(InputError):
            interpreter.run(inputs)
    with pytest.raises(InputError, match=r"input x0 is int8 \(2, 4\); the module takes uint8 \(2, 4\)"):
        interpreter.run([X.astype(np.int8)])
