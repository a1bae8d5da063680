"""Step 2: a float program becomes one with quantize and dequantize operators."""

from qcompiler._quiet import quiet

quiet()

from qcompiler.quantization.layers import rounded_layers  # noqa: E402  torchao is quiet from here on
from qcompiler.quantization.places import FloatOperator  # noqa: E402
from qcompiler.quantization.quantizer import leave_float, quantize, respell  # noqa: E402

__all__ = ["FloatOperator", "leave_float", "quantize", "respell", "rounded_layers"]
