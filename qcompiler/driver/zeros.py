"""How many of each layer's weights are zero; no kernel skips them, so a layer of zeros takes as long as another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tvm
from tvm.ir import Constant

from qcompiler.passes.graph import array, bindings, op_name
from qcompiler.runtime.manifest import LayerRecord

WORTH_TELLING = 0.25
"""Share of zeros in a layer from which on somebody meant them: a trained layer rounds a few percent to zero."""


def zero_shares(module: tvm.IRModule) -> dict[str, float]:
    """Share of zeros among the int8 weights of each integer convolution and matrix product, by its variable's name."""
    shares = {}
    for binding in bindings(module):
        if op_name(binding.value) in ("qc.conv2d", "qc.dense"):
            weight = binding.value.args[1]
            if isinstance(weight, Constant):
                shares[str(binding.var.name)] = float(np.mean(array(weight) == 0))
    return shares


def describe_zeros(layers: Sequence[LayerRecord], target: str) -> str | None:
    """A line for people about layers whose weights are zero for a good part; None if there are none."""
    sparse = [layer for layer in layers if (layer.zero_weights or 0.0) >= WORTH_TELLING]
    if not sparse:
        return None
    least, most = (f(layer.zero_weights or 0.0 for layer in sparse) for f in (min, max))
    return (
        f"{len(sparse)} layers have {least:.0%} to {most:.0%} of zero weights; no kernel for {target} skips them, they take "
        "the time of any other weights"
    )
