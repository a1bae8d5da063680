"""LowerInteger: integer operators become the target's scheduled kernels.

Before::

    y = qc.conv2d(x, weight, bias, multiplier)

After::

    y = call_tir(qc_conv2d, (x, packed_weight, packed_bias, packed_multiplier))

Weights and constants are packed here, once. Calls with the same kernel share it. A kernel whose result is padded and
not used otherwise writes it padded. A convolution of concatenated tensors reads these tensors themselves where the
target has a kernel for that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import tvm
import tvm_ffi
from tvm import relax, tirx
from tvm.ir import Constant

from qcompiler.operators import FLOAT_LAYERS, INTEGER_OPERATORS
from qcompiler.passes.expose_padding import producer
from qcompiler.passes.graph import Rewriter, array, bindings, dims, dtype, op_name
from qcompiler.targets.base import Target
from qcompiler.targets.borders import (
    CONV2D_OF_CONCAT,
    QUANTIZE_TO_NHWC,
    Border,
    Borders,
    border_of,
    write_border,
)
from qcompiler.targets.cpu import bfloat16
from qcompiler.targets.workload import Origin, Scheduled, Scheduler, Workload, default_schedule


class Kernel(Protocol):
    """What a target gives for a call: a kernel, to be scheduled or scheduled already, and its arguments."""

    @property
    def kernel(self) -> Workload | tirx.PrimFunc: ...
    @property
    def args(self) -> list[relax.Expr]: ...
    @property
    def instruction(self) -> str | None: ...
    @property
    def reason(self) -> str | None: ...
    @property
    def arithmetic(self) -> str | None: ...
    @property
    def with_border(self) -> Callable[[Border], tirx.PrimFunc] | None: ...


@dataclass(frozen=True)
class Layer:
    """A lowered call, for the reports.

    Attributes:
        name: the variable it computes, named after the user's module.
        operator: its operator.
        kernel: name of its kernel in the module; shared by identical layers.
        dtype: of its output.
        shape: of its output.
        macs: multiply-accumulates.
        accumulator_bound: largest magnitude of its accumulators, or None.
        instruction: the multiply-accumulate instruction of its kernel, or None.
        reason: why it has none, or None.
        schedule: where its schedule comes from; None for a kernel with one schedule only.
        arithmetic: formats of activations, weights and sums of a convolution or matrix product, or None.
    """

    name: str
    operator: str
    kernel: str
    dtype: str
    shape: tuple[int, ...]
    macs: int
    accumulator_bound: int | None
    instruction: str | None
    reason: str | None
    schedule: Origin | None
    arithmetic: str | None


@dataclass(frozen=True)
class Tunable:
    """A kernel with more than one schedule.

    Attributes:
        workload: the kernel and its schedules.
        args: what the first call of it is called with: activations and packed constants.
        call: that call, of an integer operator with its constants: what the kernel must compute.
    """

    workload: Workload
    args: list[relax.Expr]
    call: relax.Call


class LowerInteger:
    """Lowers integer operators with ``lowerings`` and schedules them with ``scheduler``.

    Attributes:
        layers: what became of each call.
        tunable: kernels with more than one schedule, by their names in the module.
    """

    def __init__(
        self,
        target: Target,
        lowerings: Mapping[str, Callable[[relax.Call, Target], Kernel | None]],
        scheduler: Scheduler = default_schedule,
        borders: Borders | None = None,
    ) -> None:
        self.borders = borders
        self.target = target
        self.lowerings = lowerings
        self.scheduler = scheduler
        self.tunable: dict[str, Tunable] = {}
        self.layers: list[Layer] = []

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        rewriter = _LowerInteger(module, self)
        result = rewriter.run()
        alive = {b.value.args[0].name_hint for b in bindings(result) if op_name(b.value) == "relax.call_tir"}
        self.layers = [layer for layer in rewriter.layers if layer.kernel in alive]
        self.tunable = {name: kernel for name, kernel in rewriter.tunable.items() if name in alive}
        return result


class _LowerInteger(Rewriter):
    def __init__(self, module: tvm.IRModule, options: LowerInteger) -> None:
        super().__init__(module)
        self.options = options
        self.layers: list[Layer] = []
        self.tunable: dict[str, Tunable] = {}
        self.bordered: dict[relax.Var, Border] = {}
        """The borders of calls of ``nn.pad`` that the producers of their operands write, by these operands."""
        self.joined: dict[relax.Var, Kernel] = {}
        """Kernels that compute concatenations for themselves, by these; only the convolution reads them."""
        self.absorbed: set[relax.Var] = set()
        """Such concatenations, and tables before them: nothing is left that reads them."""
        self.scheduled: dict[int, list[tuple[tirx.PrimFunc, Scheduled]]] = {}

    def prepare(self) -> None:
        for value in self.old.values():
            self._join(value)
        producers = self.options.borders.producers if self.options.borders else frozenset()
        for value in self.old.values():
            if (
                op_name(value) == "relax.nn.pad"
                and self.uses[value.args[0]] == 1
                and producer(self, value.args[0]) in producers
            ):
                border = border_of(value)
                if border is not None:
                    self.bordered[value.args[0]] = border

    def _join(self, value: relax.Expr) -> None:
        """Lowers a convolution whose input is concatenated for it alone as one of what is concatenated, if it can be.

        Along the last axis only. Tables before the concatenation are taken in where nothing else reads their results.
        """
        if op_name(value) != "qc.conv2d" or CONV2D_OF_CONCAT not in self.options.lowerings:
            return
        source = value.args[0]
        concat = self.was(source)
        if op_name(concat) != "relax.concat" or self.uses[source] != 1:
            return
        if int(concat.attrs.axis) % len(dims(concat)) != len(dims(concat)) - 1:
            return
        fields = list(self.was(concat.args[0]).fields)
        tables = {f for f in fields if op_name(self.was(f)) == "qc.lut" and self.uses[f] == 1}
        pieces = relax.Tuple([self.was(f) if f in tables else f for f in fields])
        call = relax.Call(value.op, [pieces, *value.args[1:]], value.attrs, value.ty_args)
        kernel = self.options.lowerings[CONV2D_OF_CONCAT](call, self.options.target)
        if kernel is not None:
            self.joined[source] = kernel
            self.absorbed |= {source, *tables}

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        name = op_name(value)
        if var in self.absorbed:
            return None
        if name == "qc.conv2d" and value.args[0] in self.joined:
            kernel = self.joined[value.args[0]]
            args = [self.replaced(a) for a in kernel.args]
            return self._placed(CONV2D_OF_CONCAT, kernel, args, value, value, var)
        call = self.replaced(value)
        if producer(self, var) == QUANTIZE_TO_NHWC and QUANTIZE_TO_NHWC in self.options.lowerings:
            # Quantization of an NCHW input writes NHWC itself; the kernel of the quantize node alone is then dead.
            return self._lowered(QUANTIZE_TO_NHWC, self.replaced(self.was(value.args[0])), value, var)
        if name == "qc.to_bfloat16":  # unscheduled, so that TVM fuses it with what computes its input
            return self.builder.call_te(bfloat16.conversion, *call.args, primfunc_name_hint="to_bfloat16")
        if name == "relax.nn.pad" and value.args[0] in self.bordered:
            return self.replaced(value.args[0])  # its producer wrote it
        if name not in self.options.lowerings:
            return call
        if name in ("qc.dense", "qc.float_dense") and len(dims(value)) != 2:
            return self._matrix(name, call, value)
        lowered = self._lowered(name, call, value, var)
        return call if lowered is None else lowered

    def _matrix(self, name: str, call: relax.Call, old: relax.Call) -> relax.Expr:
        """A matrix product over the last of several axes: its kernel sees the others as one."""
        rows = prod(dims(old)[:-1])
        args = list(call.args)
        for position in (k for k, arg in enumerate(args) if dims(arg)[:-1] == dims(old)[:-1]):
            args[position] = self.emit(relax.op.reshape(args[position], (rows, dims(args[position])[-1])))
        flat = self.builder.normalize(relax.Call(call.op, args, call.attrs, call.ty_args))
        lowered = self._lowered(name, flat, flat)
        if lowered is None:
            return call
        return relax.op.reshape(self.emit(lowered), dims(old))

    def _lowered(
        self, name: str, call: relax.Call, old: relax.Call, var: relax.Var | None = None
    ) -> relax.Expr | None:
        """``call`` as a kernel that computes ``old``; with ``var``, inside the border that is wanted around it."""
        kernel = self.options.lowerings[name](call, self.options.target)
        return None if kernel is None else self._placed(name, kernel, kernel.args, call, old, var)

    def _placed(
        self, name: str, kernel: Kernel, args: list[relax.Expr], call: relax.Call, old: relax.Call, var: relax.Var | None
    ) -> relax.Expr:  # fmt: skip
        """A call of ``kernel`` with ``args``, which computes ``call`` and stands for ``old``."""
        operator = name.removeprefix("qc.").removeprefix("relax.")
        scheduled, tunable = self._scheduled(kernel.kernel)
        function, shape = scheduled.function, dims(old)
        if var in self.bordered:
            border = self.bordered[var]
            shape = border.around(shape)
            function = kernel.with_border(border) if kernel.with_border else write_border(function, border)
        function = self.builder.add_func(function, f"qc_{operator}")
        if tunable is not None:
            self.tunable.setdefault(function.name_hint, Tunable(tunable, args, call))
        attrs = old.attrs if op_name(old) in INTEGER_OPERATORS else {}
        bound = int(attrs["accumulator_bound"]) if "accumulator_bound" in attrs else None
        self.layers.append(
            Layer(
                self.name, operator, function.name_hint, dtype(old), dims(old), macs(old), bound,
                kernel.instruction, kernel.reason, None if tunable is None else scheduled.origin,
                kernel.arithmetic or ("uint8 x int8 -> int32" if "accumulator_bound" in attrs else None),
            )
        )  # fmt: skip
        operands = [a if isinstance(a, relax.Var | Constant) else self.emit(a) for a in args]
        return relax.call_tir(function, operands, out_ty=relax.TensorType(shape, dtype(old)))

    def _scheduled(self, kernel: Workload | tirx.PrimFunc) -> tuple[Scheduled, Workload | None]:
        """The scheduled kernel, and what tuning can work on; equal kernels are scheduled once."""
        if not isinstance(kernel, Workload):
            return Scheduled(kernel, "default"), None
        scheduler = self.options.scheduler if kernel.tunable else default_schedule
        alike = self.scheduled.setdefault(tvm_ffi.structural_hash(kernel.function), [])
        for function, scheduled in alike:
            if tvm_ffi.structural_equal(function, kernel.function):
                return scheduled, kernel if kernel.tunable else None
        scheduled = scheduler(kernel)
        alike.append((kernel.function, scheduled))
        return scheduled, kernel if kernel.tunable else None


def macs(call: relax.Call) -> int:
    """Multiply-accumulates of a call of an operator of this compiler."""
    name = op_name(call)
    if name not in ("qc.conv2d", "qc.dense", *FLOAT_LAYERS):
        return 0
    total = array(call.args[1]).size // dims(call.args[1])[0]
    for extent in dims(call):
        total *= extent
    return total
