"""Step 1 for ONNX files: a float or QDQ model becomes an exported program.

Every node of the ONNX graph becomes a module of its own, named as the node is, so that reports, errors and
``keep_float`` speak of nodes by the names that the file gives them. What PT2E calls quantize and dequantize stays that.
"""

from qcompiler.frontend.onnx.convert import to_module
from qcompiler.frontend.onnx.source import load_onnx

__all__ = ["load_onnx", "to_module"]
