"""Step 2: a float program becomes one with quantize and dequantize operators."""

from qcompiler._quiet import quiet

quiet()

from qcompiler.quantization.places import (  # noqa: E402  torchao is quiet from here on
    FloatOperator,
    rounded_layers,
)
from qcompiler.quantization.quantizer import leave_float, quantize, respell  # noqa: E402

__all__ = ["FloatOperator", "leave_float", "quantize", "respell", "rounded_layers"]
