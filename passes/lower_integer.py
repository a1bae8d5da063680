"""LowerInteger: integer operators become the target's scheduled kernels.

Before::

    y = qc.conv2d(x, weight, bias, multiplier)

After::

    y = call_tir(qc_conv2d, (x, packed_weight, packed_bias, packed_multiplier))

Weights and constants are packed here, once. Calls with the same kernel share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Protocol

import tvm
from tvm import relax, tirx

from qcompiler.operators import INTEGER_OPERATORS
from qcompiler.passes.graph import Rewriter, array, bindings, dims, dtype, ints, op_name
from qcompiler.targets.base import Target


class Kernel(Protocol):
    """What a target gives for a call: a scheduled kernel and its arguments."""

    @property
    def function(self) -> tirx.PrimFunc: ...
    @property
    def args(self) -> list[relax.Expr]: ...
    @property
    def instruction(self) -> str | None: ...
    @property
    def reason(self) -> str | None: ...


FUSED_QUANTIZE = "quantize_to_nhwc"
"""Name of the lowering of a quantize node whose NCHW result is wanted in NHWC."""


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


class LowerInteger:
    """Lowers integer operators with ``lowerings``; ``layers`` holds what became of each call."""

    def __init__(
        self, target: Target, lowerings: Mapping[str, Callable[[relax.Call, Target], Kernel | None]]
    ) -> None:
        self.target = target
        self.lowerings = lowerings
        self.layers: list[Layer] = []

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        rewriter = _LowerInteger(module, self)
        result = rewriter.run()
        alive = {b.value.args[0].name_hint for b in bindings(result) if op_name(b.value) == "relax.call_tir"}
        self.layers = [layer for layer in rewriter.layers if layer.kernel in alive]
        return result


class _LowerInteger(Rewriter):
    def __init__(self, module: tvm.IRModule, options: LowerInteger) -> None:
        super().__init__(module)
        self.options = options
        self.layers: list[Layer] = []

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        name = op_name(value)
        call = self.replaced(value)
        if (
            name == "relax.permute_dims"
            and value.attrs.axes is not None
            and ints(value.attrs.axes) == (0, 2, 3, 1)
        ):
            # Quantization of an NCHW input writes NHWC itself; the kernel of the quantize node alone is then dead.
            source = self.was(value.args[0])
            if op_name(source) == "qc.quantize" and FUSED_QUANTIZE in self.options.lowerings:
                return self._lowered(FUSED_QUANTIZE, self.replaced(source), value)
        if name not in self.options.lowerings:
            return call
        if name == "qc.dense" and len(dims(value)) != 2:
            return self._matrix(call, value)
        lowered = self._lowered(name, call, value)
        return call if lowered is None else lowered

    def _matrix(self, call: relax.Call, old: relax.Call) -> relax.Expr:
        """A matrix product over the last of several axes: its kernel sees the others as one."""
        rows = prod(dims(old)[:-1])
        args = list(call.args)
        for position in (0, *((4,) if len(args) > 4 else ())):
            args[position] = self.emit(relax.op.reshape(args[position], (rows, dims(args[position])[-1])))
        flat = self.builder.normalize(relax.Call(call.op, args, call.attrs, call.ty_args))
        lowered = self._lowered("qc.dense", flat, flat)
        if lowered is None:
            return call
        return relax.op.reshape(self.emit(lowered), dims(old))

    def _lowered(self, name: str, call: relax.Call, old: relax.Call) -> relax.Expr | None:
        kernel = self.options.lowerings[name](call, self.options.target)
        if kernel is None:
            return None
        operator = name.removeprefix("qc.").removeprefix("relax.")
        function = self.builder.add_func(kernel.function, f"qc_{operator}")
        attrs = old.attrs if name in INTEGER_OPERATORS else {}
        bound = int(attrs["accumulator_bound"]) if "accumulator_bound" in attrs else None
        self.layers.append(
            Layer(
                self.name, operator, function.name_hint, dtype(old), dims(old), macs(call), bound,
                kernel.instruction, kernel.reason,
            )
        )  # fmt: skip
        return relax.call_tir(function, kernel.args, out_ty=relax.TensorType(dims(old), dtype(old)))


def macs(call: relax.Call) -> int:
    """Multiply-accumulates of a call of an integer operator."""
    name = op_name(call)
    if name not in ("qc.conv2d", "qc.dense"):
        return 0
    total = array(call.args[1]).size // dims(call.args[1])[0]
    for extent in dims(call):
        total *= extent
    return total
