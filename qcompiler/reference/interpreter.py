"""The interpreter: a function of the folded module, flattened once into steps and run many times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tvm
from tvm import relax

from qcompiler.errors import InputError, VerificationError
from qcompiler.reference.fallback import tvm_kernel
from qcompiler.reference.floats import FLOAT_KERNELS
from qcompiler.reference.integer import INTEGER_KERNELS
from qcompiler.reference.movement import MOVEMENT_KERNELS
from qcompiler.reference.site import (
    Array,
    Constant,
    Group,
    Kernel,
    Leaf,
    Operand,
    Site,
    Slot,
    Static,
    leaves,
    tensor_types,
)

_MAX_DEPTH = 32
"""Depth of calls between functions of a module; beyond it they are taken to be recursive."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor that was computed.

    Attributes:
        array: its elements, of the shape and dtype that the module declares.
        exact: every machine computes the same bits; false if an operator on floats, other than
            ``qc.quantize`` and ``qc.dequantize``, stands anywhere upstream.
    """

    array: Array
    exact: bool


@dataclass(frozen=True, eq=False)
class Trace:
    """Everything one run computed.

    Attributes:
        outputs: as of :meth:`Interpreter.run`.
        intermediates: every variable's value by its name, in order of execution, inputs first. A tuple ``t``
            has entries ``t[0]``, ``t[1]``; the second variable named ``lv`` is ``lv#2``.
    """

    outputs: list[Value]
    intermediates: dict[str, Value]


@dataclass(frozen=True, eq=False)
class _Step:
    kernel: Kernel
    site: Site
    arguments: tuple[Leaf, ...]
    results: tuple[Slot, ...]


class Interpreter:
    """Runs one function of a folded module.

    Weights are unpacked, and operators without a NumPy form compiled, when the interpreter is made. The
    latter share TVM's virtual machine, so run from one thread at a time.

    Args:
        module: Relax module of static shapes, with ``qc.*`` operators and Relax's own.
        function: the function to run.

    Raises:
        VerificationError: the module has no such function, or something that cannot be interpreted.
    """

    def __init__(self, module: tvm.IRModule, function: str = "main") -> None:
        names = sorted(var.name_hint for var in module.get_global_vars())
        if function not in names or not isinstance(module[function], relax.Function):
            raise VerificationError(f"module has no Relax function {function!r}; it has: {', '.join(names)}")
        flattened = _Flatten(module)
        body = module[function]
        self._inputs: list[Slot] = []
        for parameter in body.params:
            operand = flattened.define(parameter.name, parameter.ty)
            if not isinstance(operand, Slot):
                raise VerificationError(
                    f"parameter {parameter.name} of {function} is a tuple; allowed: tensors"
                )
            self._inputs.append(operand)
        self._input_names = tuple(parameter.name for parameter in body.params)
        self._outputs = tuple(leaves(flattened.inline(body, self._inputs, depth=0)))
        self._steps = tuple(flattened.steps)
        self._names = tuple(flattened.names)
        self._dead_after = _dead_after(self._steps, self._outputs)

    def run(self, inputs: Sequence[Array]) -> list[Value]:
        """The outputs, tuples flattened.

        Args:
            inputs: one array a parameter, of exactly its shape and dtype.

        Raises:
            InputError: the inputs do not match the parameters.
            VerificationError: an int32 would overflow, or a value has no integer.
        """
        return self._run(inputs, keep=False)[0]

    def trace(self, inputs: Sequence[Array]) -> Trace:
        """As :meth:`run`, with every intermediate value."""
        outputs, memory = self._run(inputs, keep=True)
        values = {name: value for name, value in zip(self._names, memory, strict=True) if value is not None}
        return Trace(outputs, values)

    def _run(self, inputs: Sequence[Array], keep: bool) -> tuple[list[Value], list[Value | None]]:
        memory: list[Value | None] = [None] * len(self._names)
        for slot, value in zip(self._inputs, self._checked(inputs), strict=True):
            memory[slot.index] = value
        for step, dead in zip(self._steps, self._dead_after, strict=True):
            arguments = [_read(leaf, memory) for leaf in step.arguments]
            # A product beyond float32 is an infinity, which the clip that follows handles.
            with np.errstate(over="ignore"):
                arrays = step.kernel.run([argument.array for argument in arguments])
            exact = step.kernel.exact and all(argument.exact for argument in arguments)
            for slot, array in zip(step.results, arrays, strict=True):
                _check_declared(array, slot, step.site)
                memory[slot.index] = Value(array, exact)
            if not keep:
                for index in dead:
                    memory[index] = None
        outputs = [_read(leaf, memory) for leaf in self._outputs]
        # A view of an input or of a constant must not let the caller change it.
        return [Value(np.array(value.array, order="C"), value.exact) for value in outputs], memory

    def _checked(self, inputs: Sequence[Array]) -> list[Value]:
        if len(inputs) != len(self._inputs):
            raise InputError(
                f"{len(inputs)} inputs given; the module takes {len(self._inputs)}: "
                f"{', '.join(self._input_names)}"
            )
        values = []
        for name, slot, given in zip(self._input_names, self._inputs, inputs, strict=True):
            array = np.asarray(given)
            if array.shape != slot.shape or array.dtype.name != slot.dtype:
                raise InputError(
                    f"input {name} is {array.dtype.name} {array.shape}; "
                    f"the module takes {slot.dtype} {slot.shape}"
                )
            values.append(Value(array, exact=True))
        return values


def interpret(module: tvm.IRModule, inputs: Sequence[Array], function: str = "main") -> list[Value]:
    """Outputs of one run of ``function``; for many runs make one :class:`Interpreter`."""
    return Interpreter(module, function).run(inputs)


def _read(leaf: Leaf, memory: Sequence[Value | None]) -> Value:
    if isinstance(leaf, Constant):
        return Value(leaf.array, exact=True)
    value = memory[leaf.index]
    assert value is not None, f"slot {leaf.index} is read before it is written or after it is dead"
    return value


def _check_declared(array: Array, slot: Slot, site: Site) -> None:
    if array.shape != slot.shape or array.dtype.name != slot.dtype:
        raise VerificationError(
            f"{site.where} computes {array.dtype.name} {array.shape}; "
            f"the module declares {slot.dtype} {slot.shape}"
        )


def _dead_after(steps: Sequence[_Step], outputs: Sequence[Leaf]) -> list[tuple[int, ...]]:
    """For every step, the slots that nothing reads after it."""
    seen = {leaf.index for leaf in outputs if isinstance(leaf, Slot)}
    dead: list[tuple[int, ...]] = []
    for step in reversed(steps):
        touched = {leaf.index for leaf in (*step.arguments, *step.results) if isinstance(leaf, Slot)}
        dead.append(tuple(touched - seen))
        seen |= touched
    dead.reverse()
    return dead


class _Flatten:
    """Turns functions into steps; a call of another function of the module becomes that function's steps."""

    def __init__(self, module: tvm.IRModule) -> None:
        self.module = module
        self.steps: list[_Step] = []
        self.names: list[str] = []
        self._uses: dict[str, int] = {}

    def define(self, name: str, ty: Any) -> Operand:
        """New slots for a variable of type ``ty``."""
        if isinstance(ty, relax.TupleType):
            return Group(tuple(self.define(f"{name}[{i}]", field) for i, field in enumerate(ty.fields)))
        shape, dtype = tensor_types(ty, f"variable {name}")[0]
        self._uses[name] = self._uses.get(name, 0) + 1
        self.names.append(name if self._uses[name] == 1 else f"{name}#{self._uses[name]}")
        return Slot(len(self.names) - 1, shape, dtype)

    def inline(self, function: Any, arguments: Sequence[Operand], depth: int) -> Operand:
        """The result of ``function`` on ``arguments``, its steps appended."""
        if depth > _MAX_DEPTH:
            raise VerificationError(
                f"functions call each other more than {_MAX_DEPTH} deep; recursion is not allowed"
            )
        scope = _Scope(self, depth)
        scope.bind(function.params, arguments)
        return scope.operand(function.body, "result")

    def call(self, site: Site) -> Operand:
        """Appends the step of one call of an operator."""
        result = self.define(site.variable, site.call.ty)
        kernel = self._kernel(site)
        slots = tuple(leaf for leaf in leaves(result) if isinstance(leaf, Slot))
        self.steps.append(_Step(kernel, site, tuple(site.tensors), slots))
        return result

    def _kernel(self, site: Site) -> Kernel:
        if site.name in INTEGER_KERNELS:
            return INTEGER_KERNELS[site.name](site)
        if site.name in FLOAT_KERNELS:
            return FLOAT_KERNELS[site.name](site)
        prepare = MOVEMENT_KERNELS.get(site.name)
        kernel = None if prepare is None else prepare(site)
        return kernel if kernel is not None else tvm_kernel(site, self.module)


class _Scope:
    """The variables of one function body."""

    def __init__(self, flatten: _Flatten, depth: int) -> None:
        self._flatten = flatten
        self._depth = depth
        self._variables: dict[Any, Operand] = {}

    def bind(self, variables: Sequence[Any], operands: Sequence[Operand]) -> None:
        self._variables.update(zip(variables, operands, strict=True))

    def operand(self, expr: Any, name: str) -> Operand:
        """What ``expr``, to be bound to variable ``name``, is; calls in it become steps."""
        if isinstance(expr, relax.SeqExpr):
            for block in expr.blocks:
                for binding in block.bindings:
                    self._variables[binding.var] = self.operand(binding.value, binding.var.name)
            return self.operand(expr.body, name)
        if isinstance(expr, relax.Var):
            return self._variables[expr]
        if isinstance(expr, relax.Tuple):
            return Group(tuple(self.operand(field, f"{name}[{i}]") for i, field in enumerate(expr.fields)))
        if isinstance(expr, relax.TupleGetItem):
            group = self.operand(expr.tuple_value, name)
            assert isinstance(group, Group), f"{name} takes an item of a {type(group).__name__}"
            return group.fields[int(expr.index)]
        if isinstance(expr, tvm.ir.Constant) and isinstance(expr.ty, relax.TensorType):
            return Constant(np.asarray(expr.value.numpy(), order="C"))
        if isinstance(expr, relax.Call) and not tvm.ir.is_prim_expr(expr):
            return self._call(expr, name)
        if isinstance(expr, relax.If):
            raise VerificationError(
                f"variable {name} is the result of an If; the interpreter has no control flow"
            )
        return Static(expr)

    def _call(self, call: Any, name: str) -> Operand:
        arguments = tuple(self.operand(a, f"{name}.{i}") for i, a in enumerate(call.args))
        if isinstance(call.op, tvm.ir.Op):
            return self._flatten.call(Site(str(call.op.name), name, call, arguments))
        if isinstance(call.op, relax.Var):
            local = self._variables[call.op]
            if isinstance(local, Static) and isinstance(local.expr, relax.Function):
                # A function within the function sees its variables, hence this scope.
                self.bind(local.expr.params, arguments)
                return self.operand(local.expr.body, name)
        elif isinstance(call.op, tvm.ir.GlobalVar):
            function = self._flatten.module[call.op]
            if isinstance(function, relax.Function):
                return self._flatten.inline(function, arguments, self._depth + 1)
        raise VerificationError(f"variable {name} calls {call.op}, which is no Relax function of the module")
