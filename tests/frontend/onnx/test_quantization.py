"""QuantizeLinear and DequantizeLinear in all their forms, against ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import pytest
import torch
from onnx import TensorProto, helper

from qcompiler.errors import UnsupportedOperatorError
from qcompiler.frontend.onnx import load_onnx

Array = np.ndarray[Any, Any]
SCALE = np.float32(0.1)


def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, [output], output, **attributes)


def program_of(model: onnx.ModelProto, folder: Path) -> torch.export.ExportedProgram:
    return load_onnx(onnx_models.save(model, folder / "m.onnx"))


def operators(program: torch.export.ExportedProgram) -> list[str]:
    return [n.target._schema.name for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]


X = np.linspace(-40, 40, 64, dtype=np.float32).reshape(4, 16)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_an_output_may_stay_quantized(dtype: Any, tmp_path: Path) -> None:
    """int8 is held as uint8 inside, and is int8 again where it leaves."""
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = onnx_models.model(
        [node("QuantizeLinear", ["x", "s", "z"], "y")], {"x": X.shape}, ["y"],
        {"s": SCALE, "z": np.asarray(7, dtype)}, dtypes={"y": number},
    )  # fmt: skip
    found = program_of(model, tmp_path).module()(torch.from_numpy(X))["y"].numpy()
    (wanted,) = onnx_models.run(model, {"x": X})
    assert found.dtype == dtype
    # x / s against x * (1 / s): they may differ where a quotient lies between two steps.
    assert np.abs(found.astype(int) - wanted.astype(int)).max() <= 1
    assert np.mean(found != wanted) < 0.1


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_an_input_may_be_quantized(dtype: Any, tmp_path: Path) -> None:
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    info = np.iinfo(dtype)
    x = np.arange(info.min, info.max + 1).astype(dtype)
    model = onnx_models.model(
        [node("DequantizeLinear", ["x", "s", "z"], "y")], {"x": x.shape}, ["y"],
        {"s": SCALE, "z": np.asarray(7, dtype)}, dtypes={"x": number},
    )  # fmt: skip
    found = program_of(model, tmp_path).module()(torch.from_numpy(x))["y"].numpy()
    assert np.array_equal(found, onnx_models.run(model, {"x": x})[0])


def test_bytes_may_be_moved_between_quantize_and_dequantize(tmp_path: Path) -> None:
    model = onnx_models.model(
        [
            node("QuantizeLinear", ["x", "s", "z"], "q"),
            node("Transpose", ["q"], "t"),
            node("DequantizeLinear", ["t", "s", "z"], "y"),
        ],
        {"x": X.shape}, ["y"], {"s": SCALE, "z": np.asarray(-3, np.int8)},
    )  # fmt: skip
    found = program_of(model, tmp_path).module()(torch.from_numpy(X))["y"].numpy()
    (wanted,) = onnx_models.run(model, {"x": X})
    assert np.abs(found - wanted).max() <= 1.001 * SCALE
    assert np.mean(found != wanted) < 0.1


def test_a_zero_point_may_be_left_out(tmp_path: Path) -> None:
    model = onnx_models.model(
        [node("QuantizeLinear", ["x", "s"], "q"), node("DequantizeLinear", ["q", "s"], "y")],
        {"x": X.shape}, ["y"], {"s": SCALE},
    )  # fmt: skip
    found = program_of(model, tmp_path).module()(torch.from_numpy(X))["y"].numpy()
    assert found.min() == 0.0
    assert found.max() == np.float32(255) * SCALE


def weights_of(
    nodes: list[onnx.NodeProto], constants: dict[str, Array], folder: Path
) -> torch.export.ExportedProgram:
    """A Gemm (transB) with the weight ``w_real``, which ``nodes`` compute."""
    model = onnx_models.model(
        [*nodes, node("Gemm", ["x", "w_real"], "y", transB=1)], {"x": (2, 16)}, ["y"], constants
    )
    program = program_of(model, folder)
    x = X[:2]
    found = program.module()(torch.from_numpy(x))["y"].numpy()
    # Sums in another order.
    np.testing.assert_allclose(found, onnx_models.run(model, {"x": x})[0], rtol=1e-4, atol=1e-3)
    assert operators(program) == ["quantized_decomposed::dequantize_per_channel", "aten::linear"]
    return program


W = np.random.default_rng(0).standard_normal((8, 16)).astype(np.float32)
CHANNELS = (np.abs(W).max(axis=1) / 127).astype(np.float32)


def test_float_weights_behind_quantize_and_dequantize_are_quantized(tmp_path: Path) -> None:
    """NNCF and TensorRT's tools keep float weights in the file."""
    constants = {"w": W, "s": CHANNELS, "z": np.zeros(8, np.int8)}
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], "q", axis=0),
        node("DequantizeLinear", ["q", "s", "z"], "w_real", axis=0),
    ]
    program = weights_of(nodes, constants, tmp_path)
    (values,) = [t for t in program.state_dict.values() if t.dtype == torch.int8]
    assert np.array_equal(values.numpy(), np.rint(W / CHANNELS[:, None]).astype(np.int8))


def test_weights_that_are_transposed_behind_dequantize_stay_quantized(tmp_path: Path) -> None:
    quantized = np.rint(W / CHANNELS[:, None]).astype(np.int8)
    constants = {"w": quantized.T.copy(), "s": CHANNELS, "z": np.zeros(8, np.int8)}
    nodes = [
        node("DequantizeLinear", ["w", "s", "z"], "d", axis=1),
        node("Transpose", ["d"], "w_real", perm=[1, 0]),
    ]
    weights_of(nodes, constants, tmp_path)


def test_weights_with_scales_of_input_channels_stay_in_float(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = onnx_models.model(
        [node("DequantizeLinear", ["w", "s"], "r", axis=1), node("Gemm", ["x", "r"], "y", transB=1)],
        {"x": (2, 16)}, ["y"], {"w": np.ones((8, 16), np.int8), "s": np.ones(16, np.float32)},
    )  # fmt: skip
    assert operators(program_of(model, tmp_path)) == ["aten::linear"]
    assert "Gemm at node 'y': its weights have scales along axis 1" in caplog.text


@pytest.mark.parametrize(
    ("constants", "attributes", "message"),
    [
        ({"s": SCALE, "z": np.asarray(0, np.int16)}, {}, "it quantizes to int16; activations of integer kernels have 8 bits"),
        ({"s": np.ones(16, np.float32), "z": np.zeros(16, np.int8)}, {"axis": 1}, "it has 16 scales; activations have one"),
        ({"s": np.float32(0), "z": np.asarray(0, np.int8)}, {}, "its scale is 0.0; scales are positive"),
    ],
)  # fmt: skip
def test_activations_without_an_integer_form_are_refused(
    constants: dict[str, Array], attributes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    number = helper.np_dtype_to_tensor_dtype(constants["z"].dtype)
    model = onnx_models.model(
        [node("QuantizeLinear", ["x", "s", "z"], "y", **attributes)], {"x": X.shape}, ["y"], constants,
        dtypes={"y": number},
    )  # fmt: skip
    with pytest.raises(UnsupportedOperatorError, match=f"QuantizeLinear at node 'y': {message}"):
        program_of(model, tmp_path)


@pytest.mark.parametrize(
    ("operator", "domain", "advice"),
    [
        ("QLinearConv", "", "quantize with quant_format=QuantFormat.QDQ"),
        ("QLinearAdd", "com.microsoft", "quantize with quant_format=QuantFormat.QDQ"),
        ("DynamicQuantizeLinear", "", "quantize statically"),
    ],
)
def test_other_quantized_forms_are_refused(operator: str, domain: str, advice: str, tmp_path: Path) -> None:
    made = helper.make_node(operator, ["x"], ["y"], "n", domain=domain)
    model = onnx_models.model([made], {"x": X.shape}, ["y"], dtypes={"y": TensorProto.UINT8})
    name = f"{domain}.{operator}" if domain else operator
    with pytest.raises(UnsupportedOperatorError, match=f"{name} at node 'n': .*{advice}"):
        program_of(model, tmp_path)
