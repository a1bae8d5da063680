"""Step 2: a float program becomes one with quantize and dequantize operators."""

from qcompiler._quiet import quiet

quiet()

from qcompiler.quantization.layers import rounded_layers  # noqa: E402  torchao is quiet from here on
from qcompiler.quantization.optimize.effects import Effect  # noqa: E402
from qcompiler.quantization.places import FloatOperator  # noqa: E402
from qcompiler.quantization.quantizer import (  # noqa: E402
    Quantized,
    leave_float,
    quantize,
    quantize_measured,
    respell,
)

__all__ = [
    "Effect",
    "FloatOperator",
    "Quantized",
    "leave_float",
    "quantize",
    "quantize_measured",
    "respell",
    "rounded_layers",
]
