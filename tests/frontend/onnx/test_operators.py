"""Every conversion gives what ONNX Runtime computes for the same node."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_models
import pytest
import torch
from onnx import TensorProto, helper

from qcompiler.frontend.onnx import load_onnx

Array = np.ndarray[Any, Any]


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(*values: int) -> Array:
    return np.asarray(values, np.int64)


@dataclass(frozen=True)
class Case:
    """A node: its runtime inputs, constant inputs (None for one left out), attributes and opset."""

    operator: str
    runtime: tuple[Array, ...]
    constants: tuple[Array | None, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 21
    outputs: int = 1
    domain: str = ""
    constants_first: bool = False

    def __str__(self) -> str:
        shown = "-".join(f"{k}={v}" for k, v in self.attributes.items() if not hasattr(v, "dims"))
        return f"{self.operator}-{self.opset}-{shown}".replace(" ", "")


IMAGE = floats(2, 4, 7, 6)
MATRIX = floats(3, 5)
POSITIVE = np.abs(MATRIX) + 0.5


def unary(name: str, x: Array = MATRIX, **options: Any) -> Case:
    return Case(name, (x,), **options)


CASES = [
    *(
        unary(name)
        for name in (
            "Abs", "Ceil", "Celu", "Cos", "Elu", "Erf", "Exp", "Floor", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu",
            "Mish", "Neg", "Relu", "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tanh",
            "ThresholdedRelu", "LpNormalization", "LogSoftmax",
        )
    ),
    *(unary(name, POSITIVE) for name in ("Log", "Reciprocal", "Sqrt")),
    unary("Gelu", attributes={"approximate": "tanh"}),
    unary("HardSigmoid", attributes={"alpha": 1 / 6, "beta": 0.5}),
    unary("LpNormalization", attributes={"p": 1, "axis": 0}),
    unary("Clip", attributes={"min": -0.5, "max": 0.5}, opset=6 + 1),
    unary("Clip", constants=(np.float32(0), np.float32(6)), opset=13),
    unary("Clip", constants=(np.float32(0),), opset=13),
    unary("Clip", opset=13),
    unary("Cast", attributes={"to": TensorProto.INT64}),
    unary("Dropout", constants=(np.float32(0.5),), opset=13),
    unary("Identity"),
    unary("Softmax", IMAGE, attributes={"axis": 1}, opset=11),
    unary("Softmax", IMAGE, attributes={"axis": 1}),
    unary("Gelu", domain="com.microsoft"),
    unary("QuickGelu", domain="com.microsoft"),
    Case("BiasGelu", (MATRIX,), (floats(5),), domain="com.microsoft"),
    *(Case(name, (MATRIX, POSITIVE)) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Mean", "Sum")),
    *(Case(name, (MATRIX,), (np.float32(1.5),)) for name in ("Add", "Sub", "Mul", "Div")),
    *(Case(name, (MATRIX,), (np.float32(1.5),), constants_first=True) for name in ("Sub", "Div")),
    Case("Add", (floats(5),), (floats(1, 1, 1),)),
    Case("Pow", (POSITIVE,), (np.float32(2.0),)),
    Case("Pow", (POSITIVE, MATRIX)),
    Case("Div", (np.asarray([-7, 7, 5], np.int64), np.asarray([2, -2, 3], np.int64))),
    Case("Mod", (np.asarray([-7, 7, 5], np.int64), np.asarray([2, -2, 3], np.int64))),
    *(Case(name, (MATRIX, floats(3, 5, seed=1))) for name in ("Equal", "Greater", "Less", "GreaterOrEqual")),
    *(Case(name, (MATRIX > 0, floats(3, 5, seed=1) > 0)) for name in ("And", "Or", "Xor")),
    unary("Not", MATRIX > 0),
    Case("Where", (MATRIX > 0, MATRIX, floats(3, 5, seed=1))),
    Case("PRelu", (IMAGE,), (floats(4, 1, 1),)),
    Case("PRelu", (IMAGE,), (floats(1),)),
    # Layers
    Case("Conv", (IMAGE,), (floats(6, 4, 3, 3), floats(6)), {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    Case("Conv", (IMAGE,), (floats(6, 4, 3, 2),), {"pads": [0, 1, 2, 0], "dilations": [1, 2]}),
    Case("Conv", (IMAGE,), (floats(8, 2, 3, 3),), {"auto_pad": "SAME_UPPER", "strides": [2, 2], "group": 2}),
    Case("Conv", (IMAGE,), (floats(4, 1, 2, 3),), {"auto_pad": "SAME_LOWER", "group": 4}),
    Case("Conv", (IMAGE, floats(3, 4, 1, 1))),
    Case("Conv", (floats(2, 4, 9),), (floats(5, 4, 3), floats(5)), {"pads": [1, 1]}),
    Case("Conv", (floats(1, 2, 4, 5, 6),), (floats(3, 2, 2, 2, 2),)),
    Case("ConvTranspose", (IMAGE,), (floats(4, 3, 3, 3), floats(3)), {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    Case("Gemm", (MATRIX,), (floats(5, 4), floats(4))),
    Case("Gemm", (MATRIX,), (floats(4, 5), floats(1, 4)), {"transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", (MATRIX.T.copy(),), (floats(5, 4),), {"transA": 1}),
    Case("Gemm", (MATRIX,), (floats(5, 4), floats(3, 4)), {"alpha": 0.5, "beta": 2.0}),
    Case("Gemm", (MATRIX, floats(5, 4), floats(4)), (), {"alpha": 2.0}),
    Case("MatMul", (floats(2, 3, 5),), (floats(5, 4),)),
    Case("MatMul", (floats(2, 3, 5), floats(2, 5, 4))),
    Case("MatMul", (floats(5),), (floats(5, 4),)),
    Case("BatchNormalization", (IMAGE,), (floats(4), floats(4, seed=1), floats(4, seed=2), np.abs(floats(4, seed=3))), {"epsilon": 1e-3}),
    Case("InstanceNormalization", (IMAGE,), (floats(4), floats(4, seed=1))),
    Case("GroupNormalization", (IMAGE,), (floats(4), floats(4, seed=1)), {"num_groups": 2}),
    Case("LayerNormalization", (floats(2, 3, 8),), (floats(8), floats(8, seed=1)), {"axis": -1}),
    Case("LRN", (floats(1, 8, 3, 3),), (), {"size": 5, "alpha": 0.1, "bias": 2.0}),
    # Pooling and resizing
    Case("MaxPool", (IMAGE,), (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("MaxPool", (IMAGE,), (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 0, 1, 1]}),
    Case("MaxPool", (IMAGE,), (), {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1, 2, 0, 0]}),
    Case("MaxPool", (IMAGE,), (), {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
    Case("MaxPool", (IMAGE,), (), {"kernel_shape": [3, 2], "dilations": [2, 1], "auto_pad": "VALID"}),
    Case("MaxPool", (floats(1, 3, 9),), (), {"kernel_shape": [3], "strides": [2]}),
    Case("AveragePool", (IMAGE,), (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    Case("AveragePool", (IMAGE,), (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", (IMAGE,), (), {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    Case("AveragePool", (IMAGE,), (), {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 0, 0, 1], "count_include_pad": 1}),
    Case("AveragePool", (IMAGE,), (), {"kernel_shape": [2, 2], "pads": [1, 0, 0, 0]}),
    Case("GlobalAveragePool", (IMAGE,)),
    Case("GlobalAveragePool", (floats(2, 3, 5),)),
    Case("GlobalMaxPool", (IMAGE,)),
    Case("GlobalMaxPool", (floats(2, 3, 5),)),
    *(
        Case("Resize", (IMAGE,), (None, np.asarray([1, 1, *scales], np.float32)), attributes)
        for scales, attributes in (
            ((2, 3), {"mode": "nearest"}),
            ((2, 3), {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
            ((3, 3), {"mode": "nearest", "coordinate_transformation_mode": "asymmetric"}),
            ((0.5, 1.5), {"mode": "nearest", "nearest_mode": "round_prefer_ceil"}),
            ((2, 2), {"mode": "linear"}),
            ((2, 2), {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
            ((2, 2), {"mode": "cubic"}),
        )
    ),
    Case("Resize", (IMAGE,), (None, None, integers(2, 4, 10, 9)), {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}),
    Case("Upsample", (IMAGE,), (np.asarray([1, 1, 2, 2], np.float32),), {"mode": "nearest"}, opset=9),
    # Movement
    Case("Concat", (IMAGE, IMAGE), (), {"axis": 1}),
    Case("Concat", (IMAGE,), (floats(2, 1, 7, 6),), {"axis": -3}),
    Case("Split", (IMAGE,), (integers(1, 3),), {"axis": 1}, outputs=2),
    Case("Split", (IMAGE,), (), {"axis": 2, "num_outputs": 3}, outputs=3),
    Case("Split", (IMAGE,), (), {"axis": 1, "split": [2, 2]}, outputs=2, opset=11),
    Case("Slice", (IMAGE,), (integers(1, -4), integers(100, -1), integers(2, 3))),
    Case("Slice", (IMAGE,), (integers(-1, 0), integers(-100, 5), integers(2, 3), integers(-2, 3))),
    Case("Slice", (IMAGE,), (), {"starts": [1], "ends": [3], "axes": [1]}, opset=9),
    Case("Gather", (IMAGE,), (integers(0, -1, 2),), {"axis": 1}),
    Case("Gather", (IMAGE,), (np.asarray(-1, np.int64),), {"axis": 2}),
    Case("Gather", (integers(0, -1, 2, 2).reshape(2, 2),), (floats(3, 5),), constants_first=True),
    Case("Gather", (IMAGE, integers(0, -1, 2, 2).reshape(2, 2)), (), {"axis": 2}),
    Case("GatherElements", (MATRIX, integers(0, -1, 2).reshape(3, 1)), (), {"axis": 1}),
    Case("Reshape", (IMAGE,), (integers(0, -1, 6),)),
    Case("Flatten", (IMAGE,), (), {"axis": 2}),
    Case("Squeeze", (floats(1, 3, 1),), (integers(0),)),
    Case("Squeeze", (floats(1, 3, 1),), (), {"axes": [-1]}, opset=11),
    Case("Unsqueeze", (MATRIX,), (integers(0, -1),)),
    Case("Transpose", (IMAGE,), (), {"perm": [0, 2, 3, 1]}),
    Case("Transpose", (IMAGE,)),
    Case("Expand", (floats(3, 1),), (integers(2, 1, 5),)),
    Case("Tile", (MATRIX,), (integers(2, 3),)),
    Case("Pad", (IMAGE,), (integers(0, 0, 1, 2, 0, 0, 3, 0), np.float32(1.5))),
    Case("Pad", (IMAGE,), (integers(1, 2, 2, 1), None, integers(2, 3)), {"mode": "reflect"}),
    Case("Pad", (IMAGE,), (), {"mode": "edge", "pads": [0, 0, 1, 2, 0, 0, 3, 0]}, opset=10),
    Case("DepthToSpace", (floats(1, 8, 2, 3),), (), {"blocksize": 2}),
    Case("DepthToSpace", (floats(1, 8, 2, 3),), (), {"blocksize": 2, "mode": "CRD"}),
    Case("SpaceToDepth", (floats(1, 2, 4, 6),), (), {"blocksize": 2}),
    Case("Einsum", (floats(2, 3, 4), floats(2, 4, 5)), (), {"equation": "bij,bjk->bik"}),
    Case("Trilu", (floats(4, 4),), (np.asarray(1, np.int64),), {"upper": 0}),
    # Reductions
    *(
        Case(f"Reduce{name}", (POSITIVE,), (integers(1),), {"keepdims": 0}, opset=18)
        for name in ("L1", "L2", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    ),
    Case("ReduceMean", (IMAGE,), (), {"axes": [2, 3]}, opset=11),
    Case("ReduceProd", (MATRIX,), (), {"keepdims": 0}, opset=18),
    Case("ReduceSum", (MATRIX,), (), {"noop_with_empty_axes": 1}, opset=13),
    Case("ArgMax", (MATRIX,), (), {"axis": 1, "keepdims": 0}),
    Case("ArgMin", (MATRIX,), (), {"axis": 0}),
    Case("CumSum", (MATRIX,), (np.asarray(1, np.int64),)),
]  # fmt: skip


def build(case: Case) -> tuple[Any, dict[str, Array]]:
    runtime = {f"x{k}": array for k, array in enumerate(case.runtime)}
    constants = {f"c{k}": np.asarray(a) for k, a in enumerate(case.constants) if a is not None}
    names = [f"c{k}" if a is not None else "" for k, a in enumerate(case.constants)]
    order = [*names, *runtime] if case.constants_first else [*runtime, *names]
    outputs = [f"y{k}" for k in range(case.outputs)]
    node = helper.make_node(case.operator, order, outputs, "node", domain=case.domain, **case.attributes)
    dtypes = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in runtime.items()}
    if case.operator in ("ArgMax", "ArgMin", "Cast") or (
        runtime["x0"].dtype == np.int64 and case.operator != "Gather"
    ):
        dtypes |= dict.fromkeys(outputs, TensorProto.INT64)
    if case.operator in ("And", "Or", "Xor", "Not", "Equal", "Greater", "Less", "GreaterOrEqual"):
        dtypes |= dict.fromkeys(outputs, TensorProto.BOOL)
    shapes = {name: array.shape for name, array in runtime.items()}
    model = onnx_models.model([node], shapes, outputs, constants, opset=case.opset, dtypes=dtypes)
    return model, runtime


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_node_gives_what_onnx_runtime_computes(case: Case, tmp_path: Path) -> None:
    model, runtime = build(case)
    program = load_onnx(onnx_models.save(model, tmp_path / "m.onnx"))
    found = program.module()(*(torch.from_numpy(a.copy()) for a in runtime.values()))
    wanted = onnx_models.run(model, runtime)
    assert list(found) == [f"y{k}" for k in range(case.outputs)]
    for tensor, array in zip(found.values(), wanted, strict=True):
        assert tensor.shape == array.shape
        assert tensor.numpy().dtype == array.dtype
        # Sums are taken in another order, and exp and erf are approximated otherwise: some float32 roundings.
        np.testing.assert_allclose(tensor.numpy(), array, rtol=2e-5, atol=2e-5)


def test_every_operator_of_the_table_that_has_a_runtime_input_is_tested() -> None:
    from qcompiler.frontend.onnx.convert import CONVERTERS

    tested = {f"{c.domain}.{c.operator}" if c.domain else c.operator for c in CASES}
    elsewhere = {  # shapes and constants: test_convert; quantization: test_quantization
        "Constant", "ConstantOfShape", "EyeLike", "Range", "Shape", "Size", "QuantizeLinear", "DequantizeLinear",
        "com.microsoft.QuantizeLinear", "com.microsoft.DequantizeLinear",
    }  # fmt: skip
    newer = {"RMSNormalization", "Swish", "IsNaN", "LessOrEqual"}
    assert set(CONVERTERS) - tested - elsewhere - newer == set()
