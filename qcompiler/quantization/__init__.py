"""Step 2: a float program becomes one with quantize and dequantize operators."""

from qcompiler.quantization.places import FloatOperator
from qcompiler.quantization.quantizer import quantize

__all__ = ["FloatOperator", "quantize"]
