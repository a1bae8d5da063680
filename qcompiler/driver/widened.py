"""Layers whose weights are kept in fewer bits than they are multiplied in, and whether that gains time."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from qcompiler.runtime.manifest import LayerRecord

MANY_USES = 32
"""Multiplications that a weight takes part in, in a run, from which on widening it costs more than reading less saves: of
a layer of 16 million weights float16 takes 0.45, 0.68, 0.97 and 1.13 times as long as float32 with 1, 4, 16 and 64 uses."""

_SUMS_OF_FLOAT32 = "float32 x "
_LAYERS = ("float_conv2d", "float_dense")


def describe_widened(layers: Sequence[LayerRecord]) -> str | None:
    """A line for people if most of the work with narrow weights would be faster with float32 ones; else None."""
    narrow = [
        layer
        for layer in layers
        if layer.operator in _LAYERS
        and (layer.arithmetic or "").startswith(_SUMS_OF_FLOAT32)
        and not (layer.arithmetic or "").startswith("float32 x float32")
    ]
    work = sum(layer.macs for layer in narrow)
    slow = sum(layer.macs for layer in narrow if _uses(layer) >= MANY_USES)
    if not narrow or 2 * slow < work:
        return None
    formats = sorted({(layer.arithmetic or "").split(" x ")[1].split(" ->")[0] for layer in narrow})
    return (
        f"the {' and '.join(formats)} weights of {len(narrow)} layers are widened to float32 at each use, for want of "
        f"instructions that multiply them; {slow / work:.0%} of their multiplications are in layers that use a weight "
        f"{MANY_USES} times or more in a run, where float32 weights are up to 15 % faster: choose fp32 unless size matters"
    )


def _uses(layer: LayerRecord) -> int:
    """How often a run uses a weight: positions of the output, whose channels are last."""
    return prod(layer.output_shape[:-1])
