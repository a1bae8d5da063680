"""Rebuilding a module binding by binding."""

from __future__ import annotations

import numpy as np
from qc_modules import assert_equal, const, make, operators
from tvm import relax

from qcompiler.passes.graph import Rewriter, bindings, op_name

SHAPE = ((2, 3), "float32")


class Keep(Rewriter):
    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        return None


class Exchange(Rewriter):
    """exp becomes tanh."""

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        return relax.op.tanh(self.replaced(value).args[0]) if op_name(value) == "relax.exp" else None


def test_nothing_rewritten_is_the_same_module() -> None:
    module = make(
        lambda e, x: (relax.op.add(e(relax.op.exp(x)), const(1.0, "float32")), relax.op.tanh(x)), SHAPE
    )
    assert_equal(Keep(module).run(), module)


def test_users_see_the_new_expression() -> None:
    before = make(lambda e, x: relax.op.add(e(relax.op.exp(x)), x), SHAPE)
    assert_equal(Exchange(before).run(), make(lambda e, x: relax.op.add(e(relax.op.tanh(x)), x), SHAPE))


def test_what_is_returned_is_rewritten_too() -> None:
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType(*SHAPE))
    with builder.function("main", [x]):
        with builder.dataflow():
            output = builder.emit_output(relax.op.exp(x))
        builder.emit_func_output(output)
    assert operators(Exchange(builder.get()).run()) == ["relax.tanh"]


def test_the_module_given_is_not_changed() -> None:
    before = make(lambda e, x: relax.op.exp(x), SHAPE)
    Exchange(before).run()
    assert operators(before) == ["relax.exp"]


def test_bindings_without_users_vanish() -> None:
    def build(emit, x):  # type: ignore[no-untyped-def]
        emit(relax.op.exp(x))
        return relax.op.tanh(x)

    assert operators(Keep(make(build, SHAPE)).run()) == ["relax.tanh"]


def test_items_of_known_tuples_are_looked_through() -> None:
    def build(emit, x):  # type: ignore[no-untyped-def]
        pair = emit(relax.Tuple([emit(relax.op.exp(x)), x]))
        return relax.op.tanh(emit(relax.TupleGetItem(pair, 0)))

    after = Keep(make(build, SHAPE)).run()
    assert operators(after) == ["relax.exp", "relax.tanh"]
    assert not any(isinstance(b.value, relax.TupleGetItem) for b in bindings(after))


def test_uses_are_counted() -> None:
    module = make(lambda e, x: relax.op.add(x, e(relax.op.multiply(x, const(np.float32(2))))), SHAPE)
    rewriter = Keep(module)
    rewriter.run()
    (parameter,) = module["main"].params
    assert rewriter.uses[parameter] == 2
