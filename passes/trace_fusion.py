"""TraceFusion: which variables of ``main`` each kernel computes, although fusion gives its results new names.

Before::

    conv1 = call_tir(conv2d, (x, w))
    relu = call_tir(relu, (conv1,))

After::

    lv = call_tir(fused_conv2d_relu, (x, w))    # origins: (("conv1", "relu"),)

No pass: :meth:`TraceFusion.before` looks at the module in front of ``FuseOps``, :meth:`TraceFusion.after` behind it.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm
from tvm import relax
from tvm.ir import GlobalVar

from qcompiler.errors import PassError
from qcompiler.passes.graph import bindings, op_name

_Key = tuple[str, tuple[relax.Expr, ...]]
_Resolve = Callable[[relax.Expr], relax.Expr]


class TraceFusion:
    """Compares ``main`` in front of fusion and behind it.

    Attributes:
        origins: for each call of a kernel in ``main``, in order, the names of the variables that it computes.
    """

    def __init__(self) -> None:
        self.origins: tuple[tuple[str, ...], ...] = ()
        self._waiting: dict[_Key, list[relax.Var]] = {}
        self._aliases: dict[relax.Var, relax.Expr] = {}

    def before(self, module: tvm.IRModule) -> None:
        """Takes note of every call, by what it calls and with what."""
        for binding in bindings(module):
            if op_name(binding.value) == "relax.call_tir":
                self._waiting.setdefault(_key(binding.value, self._resolved), []).append(binding.var)
            elif isinstance(binding.value, relax.Var):
                self._aliases[binding.var] = self._resolved(binding.value)

    def after(self, module: tvm.IRModule) -> None:
        """Finds each call's parts among those noted; a fused function is looked into."""
        was: dict[relax.Var, relax.Expr] = {}  # what stood for a variable in front of fusion

        def resolved(expr: relax.Expr) -> relax.Expr:
            return self._resolved(was.get(expr, expr) if isinstance(expr, relax.Var) else expr)

        origins = []
        for binding in bindings(module):
            value = binding.value
            if op_name(value) == "relax.call_tir":
                was[binding.var] = self._take(value, resolved)
                origins.append((was[binding.var].name,))
            elif isinstance(value, relax.Call) and isinstance(value.op, GlobalVar):
                function = module[value.op]
                was.update(zip(function.params, map(resolved, value.args), strict=True))
                names = []
                for inner in (b for block in function.body.blocks for b in block.bindings):
                    if op_name(inner.value) == "relax.call_tir":
                        was[inner.var] = self._take(inner.value, resolved)
                        names.append(was[inner.var].name)
                    elif isinstance(inner.value, relax.Var):
                        was[inner.var] = resolved(inner.value)
                was[binding.var] = resolved(function.body.body)
                origins.append(tuple(names))
            elif isinstance(value, relax.Var):
                was[binding.var] = resolved(value)
        self.origins = tuple(origins)

    def _resolved(self, expr: relax.Expr) -> relax.Expr:
        return self._aliases.get(expr, expr) if isinstance(expr, relax.Var) else expr

    def _take(self, call: relax.Call, resolved: _Resolve) -> relax.Var:
        waiting = self._waiting.get(_key(call, resolved))
        if not waiting:
            raise PassError(
                f"fusion left a call of {call.args[0].name_hint} that was not there; report this as a bug"
            )
        return waiting.pop(0)


def _key(call: relax.Call, resolved: _Resolve) -> _Key:
    fields = call.args[1].fields if isinstance(call.args[1], relax.Tuple) else [call.args[1]]
    return call.args[0].name_hint, tuple(map(resolved, fields))
