"""ExposePadding: the padding of a convolution is an operator of its own where its producer can write it.

Before::

    y = qc.conv2d(x, ...)
    z = qc.conv2d(y, ..., padding=[1, 1, 1, 1], pad_value=3)

After::

    y = qc.conv2d(x, ...)
    p = nn.pad(y, 3)
    z = qc.conv2d(p, ..., padding=[0, 0, 0, 0])

Lowering makes ``y`` and ``p`` one kernel that writes its output inside a border, and the copy of ``y`` into a padded
buffer is gone. Only where ``y`` has no other use, and where the target says that the second convolution then reads
its input in place; or where the target needs a padded input for its best kernel, were it by a copy.
"""

from __future__ import annotations

import tvm
from tvm import relax

from qcompiler import operators
from qcompiler.passes.graph import Rewriter, ints, op_name
from qcompiler.targets.base import Target
from qcompiler.targets.borders import QUANTIZE_TO_NHWC, Borders


class ExposePadding:
    """Takes padding out of convolutions whose producers can write it."""

    def __init__(self, target: Target, borders: Borders) -> None:
        self.target = target
        self.borders = borders

    def __call__(self, module: tvm.IRModule) -> tvm.IRModule:
        return _ExposePadding(module, self).run()


def producer(rewriter: Rewriter, old: relax.Expr) -> str:
    """The operator whose kernel writes an old tensor; quantization into NHWC counts as one operator."""
    value = rewriter.was(old)
    if (
        op_name(value) == "relax.permute_dims"
        and value.attrs.axes is not None
        and ints(value.attrs.axes) == (0, 2, 3, 1)
        and op_name(rewriter.was(value.args[0])) == "qc.quantize"
    ):
        return QUANTIZE_TO_NHWC
    return op_name(value)


class _ExposePadding(Rewriter):
    def __init__(self, module: tvm.IRModule, options: ExposePadding) -> None:
        super().__init__(module)
        self.options = options

    def rewrite(self, var: relax.Var, value: relax.Expr) -> relax.Expr | None:
        if op_name(value) not in ("qc.conv2d", "qc.float_conv2d") or str(value.attrs["layout"]) != "NHWC":
            return None
        source = value.args[0]
        top, left, bottom, right = ints(value.attrs["padding"])
        borders, target = self.options.borders, self.options.target
        if not (top or left or bottom or right):
            return None
        written = (
            isinstance(source, relax.Var)
            and self.uses[source] == 1
            and producer(self, source) in borders.producers
        )
        if not (written and borders.wanted(value, target)) and not borders.needed(value, target):
            return None
        widths = [0, 0, top, bottom, left, right, 0, 0]
        attrs = {str(k): v for k, v in value.attrs.items()} | {"padding": [0, 0, 0, 0]}
        fill = float(attrs.get("pad_value", 0.0))  # float tensors are padded with zero
        padded = self.emit(
            relax.op.nn.pad(self.replaced(source), widths, "constant", fill), f"{self.name}_padded"
        )
        return operators.call(op_name(value), [padded, *(self.replaced(a) for a in value.args[1:])], **attrs)
