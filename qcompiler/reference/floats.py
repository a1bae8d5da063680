"""The mark of a float layer's precision, as the rounding that it stands for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np

from qcompiler.errors import VerificationError
from qcompiler.reference.site import Array, Kernel, Site
from qcompiler.targets.cpu.bfloat16 import bfloat16_bits


def _round_float(site: Site) -> Kernel:
    """Not exact: a target may compute with more bits, and what is computed from the result is float."""
    site.expect("float32")
    precision = str(site.call.attrs["precision"])
    if precision not in ("bfloat16", "float16", "int8_weights"):
        raise VerificationError(
            f"{site.where} rounds to {precision!r}; allowed: bfloat16, float16, int8_weights"
        )

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        (x,) = arrays
        if precision == "int8_weights":
            return (x,)
        if precision == "float16":
            return (x.astype(np.float16).astype(np.float32),)
        return ((bfloat16_bits(x).astype(np.uint32) << 16).view(np.float32),)

    return Kernel(run, exact=False)


FLOAT_KERNELS: Mapping[str, Callable[[Site], Kernel]] = MappingProxyType({"qc.round_float": _round_float})
