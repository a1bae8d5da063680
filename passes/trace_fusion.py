"""TraceFusion: which variables of ``main`` each kernel computes, although fusion gives its results new names.

Before::

    conv1 = call_tir(conv2d, (x, w))
    relu = call_tir(relu, (conv1,))

After::

    lv = call_tir(fused_conv2d_relu, (x, w))    # origins: (("conv1", "relu"),)

No pass: :meth:`TraceFusion.before` looks at the module in front of ``FuseOps``, :meth:`TraceFusion.after` behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

import tvm
from tvm import relax
from tvm.ir import GlobalVar

from qcompiler.errors import PassError
from qcompiler.passes.graph import bindings, op_name

_Origin = Hashable
"""What a variable stands for: a variable in front of fusion, a field of one as a pair, or an expression."""

_Key = tuple[str, tuple[_Origin, ...]]
_Resolve = Callable[[relax.Expr], _Origin]


class TraceFusion:
    """Compares ``main`` in front of fusion and behind it.

    Attributes:
        origins: for each call of a kernel in ``main``, in order, the names of the variables that it computes.
    """

    def __init__(self) -> None:
        self.origins: tuple[tuple[str, ...], ...] = ()
        self._waiting: dict[_Key, list[relax.Var]] = {}
        self._aliases: dict[relax.Var, _Origin] = {}

    def before(self, module: tvm.IRModule) -> None:
        """Takes note of every call, by what it calls and with what."""
        for binding in bindings(module):
            if op_name(binding.value) == "relax.call_tir":
                self._waiting.setdefault(_key(binding.value, self._resolved), []).append(binding.var)
            elif isinstance(binding.value, relax.Var | relax.TupleGetItem):
                self._aliases[binding.var] = _origin(binding.value, self._resolved)

    def after(self, module: tvm.IRModule) -> None:
        """Finds each call's parts among those noted; a fused function is looked into."""
        was: dict[relax.Var, _Origin] = {}  # what stood for a variable in front of fusion

        def resolved(expr: relax.Expr) -> _Origin:
            return self._resolved(was.get(expr, expr) if isinstance(expr, relax.Var) else expr)

        origins = []
        for binding in bindings(module):
            value = binding.value
            if op_name(value) == "relax.call_tir":
                found = was[binding.var] = self._take(value, resolved)
                origins.append((found.name,))
            elif isinstance(value, relax.Call) and isinstance(value.op, GlobalVar):
                function = module[value.op]
                was.update(zip(function.params, map(resolved, value.args), strict=True))
                names = []
                for inner in (b for block in function.body.blocks for b in block.bindings):
                    if op_name(inner.value) == "relax.call_tir":
                        found = was[inner.var] = self._take(inner.value, resolved)
                        names.append(found.name)
                    elif isinstance(inner.value, relax.Var | relax.TupleGetItem):
                        was[inner.var] = _origin(inner.value, resolved)
                was[binding.var] = resolved(function.body.body)
                origins.append(tuple(names))
            elif isinstance(value, relax.Var | relax.TupleGetItem):
                was[binding.var] = _origin(value, resolved)
        self.origins = tuple(origins)

    def _resolved(self, expr: _Origin) -> _Origin:
        return self._aliases.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def _take(self, call: relax.Call, resolved: _Resolve) -> relax.Var:
        waiting = self._waiting.get(_key(call, resolved))
        if not waiting:
            raise PassError(
                f"fusion left a call of {call.args[0].name_hint} that was not there; report this as a bug"
            )
        return waiting.pop(0)


def _origin(expr: relax.Expr, resolved: _Resolve) -> _Origin:
    """What a variable bound to ``expr``, a variable or a field of one, stands for."""
    if isinstance(expr, relax.TupleGetItem):
        return resolved(expr.tuple_value), int(expr.index)
    return resolved(expr)


def _key(call: relax.Call, resolved: _Resolve) -> _Key:
    fields = call.args[1].fields if isinstance(call.args[1], relax.Tuple) else [call.args[1]]
    return call.args[0].name_hint, tuple(map(resolved, fields))
