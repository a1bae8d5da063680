"""Step 2: a float program becomes one with quantize and dequantize operators."""

from qcompiler._quiet import quiet

quiet()

from qcompiler.quantization.optimize.effects import Effect  # noqa: E402
from qcompiler.quantization.places import FloatOperator  # noqa: E402  torchao is quiet from here on
from qcompiler.quantization.quantizer import Quantized, quantize, quantize_measured, respell  # noqa: E402

__all__ = ["Effect", "FloatOperator", "Quantized", "quantize", "quantize_measured", "respell"]
