"""Rebuilding a module's main function binding by binding: what every pass here is made of."""

from __future__ import annotations

from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm import relax
from tvm.ir import Constant, Op

from qcompiler.errors import PassError

MAIN = "main"


def dims(expr: relax.Expr) -> tuple[int, ...]:
    """The static shape of a tensor expression."""
    return tuple(int(d) for d in expr.ty.shape)


def dtype(expr: relax.Expr) -> str:
    return str(expr.ty.dtype)


def is_tensor(expr: relax.Expr) -> bool:
    return isinstance(expr.ty, relax.TensorType)


def array(expr: relax.Expr) -> NDArray[Any]:
    """The elements of a constant."""
    return np.asarray(expr.value.numpy())


def constant(values: NDArray[Any]) -> relax.Expr:
    """A constant of exactly the dtype of ``values``."""
    values = np.asarray(values, order="C")  # ascontiguousarray makes scalars arrays
    return relax.const(values, values.dtype.name)


def ints(values: Any) -> tuple[Any, ...]:
    """An attribute that is a sequence of integers."""
    return tuple(int(v) for v in values)


def op_name(expr: relax.Expr) -> str:
    """Name of the operator that ``expr`` calls, or an empty string."""
    if isinstance(expr, relax.Call) and isinstance(expr.op, Op):
        return str(expr.op.name)
    return ""


class Rewriter:
    """Rebuilds ``main``; a pass overrides :meth:`rewrite`.

    Attributes:
        builder: where the new bindings are emitted.
        old: what every variable of the old function is bound to.
        uses: how often every variable of the old function is used.
        new: what every variable of the new function is bound to.
        mapping: the new expression of every old variable.
        notes: reasons for what the pass left alone, by the name of the variable.
    """

    def __init__(self, module: tvm.IRModule) -> None:
        self.module = module
        self.builder = relax.BlockBuilder()
        self.old: dict[relax.Var, relax.Expr] = {}
        self.uses: dict[relax.Var, int] = {}
        self.new: dict[relax.Var, relax.Expr] = {}
        self.mapping: dict[relax.Var, relax.Expr] = {}
        self.notes: dict[str, str] = {}
        self.name = ""

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        """The new expression for old ``var``, or None to keep ``value`` with its arguments replaced."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Looks at the old bindings before any of them is rewritten."""

    def emit(self, expr: relax.Expr, name: str = "") -> relax.Var:
        """Binds ``expr`` to a new variable, named after the one that is being rewritten."""
        var = self.builder.emit(expr, name or self.name)
        self.new[var] = expr
        return var

    def definition(self, expr: relax.Expr) -> relax.Expr:
        """What a new variable is bound to; anything else stands for itself."""
        return self.new.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def was(self, expr: relax.Expr) -> relax.Expr:
        """What an old variable is bound to; anything else stands for itself."""
        return self.old.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def replaced(self, expr: relax.Expr) -> relax.Expr:
        """An old expression with its variables replaced by new expressions."""
        if isinstance(expr, relax.Var):
            return self.mapping.get(expr, expr)
        if isinstance(expr, relax.Tuple):
            return relax.Tuple([self.replaced(f) for f in expr.fields])
        if isinstance(expr, relax.TupleGetItem):
            source = self.replaced(expr.tuple_value)
            while isinstance(source, relax.Var) and isinstance(self.new.get(source), relax.Var):
                source = self.new[source]
            bound = self.definition(source)
            if isinstance(bound, relax.Tuple):
                return bound.fields[expr.index]
            return relax.TupleGetItem(source, expr.index)
        if isinstance(expr, relax.Call):
            call = relax.Call(expr.op, [self.replaced(a) for a in expr.args], expr.attrs, expr.ty_args)
            return self.builder.normalize(call)  # gives it its type
        return expr

    def run(self) -> tvm.IRModule:
        """The new module; bindings that nothing uses are gone."""
        main = self.module[MAIN]
        if len(main.body.blocks) != 1 or not isinstance(main.body.blocks[0], relax.DataflowBlock):
            raise PassError("main must be one block without control flow")
        bindings = list(main.body.blocks[0].bindings)
        for binding in bindings:
            self.old[binding.var] = binding.value
            for used in _variables(binding.value):
                self.uses[used] = self.uses.get(used, 0) + 1
        self.prepare()
        params = [relax.Var(p.name, p.ty) for p in main.params]
        self.mapping.update(zip(main.params, params, strict=True))
        functions = {gv: f for gv, f in self.module.functions_items() if gv.name_hint != MAIN}
        self.builder = relax.BlockBuilder(tvm.IRModule(functions))
        with self.builder.function(MAIN, params):
            with self.builder.dataflow():
                returned = main.body.body
                grouped = isinstance(self.was(returned), relax.Tuple)
                for binding in bindings:
                    if grouped and binding.var.same_as(returned):
                        continue  # emitted last, as the output
                    self.name = binding.var.name
                    result = self.rewrite(binding.var, binding.value)
                    if result is None:
                        result = self.replaced(binding.value)
                    if not isinstance(result, relax.Var | Constant):
                        result = self.emit(result)
                    self.mapping[binding.var] = result
                result = self.replaced(self.was(returned) if grouped else returned)
                output = self.builder.emit_output(result)
            self.builder.emit_func_output(output)
        return relax.transform.DeadCodeElimination()(self.builder.get())


def _variables(expr: relax.Expr) -> list[relax.Var]:
    found: list[relax.Var] = []
    if isinstance(expr, relax.Var):
        found.append(expr)
    elif isinstance(expr, relax.Tuple):
        for field in expr.fields:
            found += _variables(field)
    elif isinstance(expr, relax.TupleGetItem):
        found += _variables(expr.tuple_value)
    elif isinstance(expr, relax.Call):
        for arg in expr.args:
            found += _variables(arg)
    return found


def bindings(module: tvm.IRModule) -> list[relax.VarBinding]:
    """All bindings of ``main`` in order."""
    return [b for block in module[MAIN].body.blocks for b in block.bindings]
