"""The walk over the graph: constants, names, outputs, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_models
import pytest
import torch
from onnx import TensorProto, helper

from qcompiler.errors import ConfigError, FrontendError, UnsupportedOperatorError
from qcompiler.frontend.onnx import load_onnx
from qcompiler.frontend.program import user_inputs, user_outputs

Array = np.ndarray[Any, Any]


def node(operator: str, inputs: list[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs, list(outputs), outputs[0], **attributes)


def loaded(model: onnx.ModelProto, folder: Path, **options: Any) -> torch.export.ExportedProgram:
    return load_onnx(onnx_models.save(model, folder / "m.onnx"), **options)


def targets(program: torch.export.ExportedProgram) -> list[str]:
    return [n.target._schema.name for n in program.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]


def test_shapes_are_computed_while_converting(tmp_path: Path) -> None:
    """What exporters write for ``x.reshape(x.shape[0], -1) + arange``: nothing of it is left."""
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Constant", [], "zero", value_int=0),
        node("Gather", ["shape", "zero"], "batch"),
        node("Constant", [], "axes", value_ints=[0]),
        node("Unsqueeze", ["batch", "axes"], "first"),
        node("Constant", [], "rest", value_ints=[-1]),
        node("Concat", ["first", "rest"], "wanted", axis=0),
        node("Reshape", ["x", "wanted"], "flat"),
        node("Size", ["flat"], "size"),
        node("Cast", ["size"], "total", to=TensorProto.FLOAT),
        node("Mul", ["flat", "total"], "y"),
    ]
    x = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(np.float32)
    model = onnx_models.model(nodes, {"x": x.shape}, ["y"])
    program = loaded(model, tmp_path)
    assert targets(program) == ["aten::reshape", "aten::mul"]
    found = program.module()(torch.from_numpy(x))["y"].numpy()
    assert np.array_equal(found, onnx_models.run(model, {"x": x})[0])


def test_constants_are_computed_while_converting(tmp_path: Path) -> None:
    nodes = [
        node("Constant", [], "two", value_floats=[2.0, 3.0]),
        node("Constant", [], "shape", value_ints=[2]),
        node(
            "ConstantOfShape", ["shape"], "fill", value=helper.make_tensor("v", TensorProto.FLOAT, [1], [5.0])
        ),
        node("Constant", [], "from", value_float=0.0),
        node("Constant", [], "to", value_float=2.0),
        node("Constant", [], "by", value_float=1.0),
        node("Range", ["from", "to", "by"], "range"),
        node("EyeLike", ["x"], "eye"),
        node("Sum", ["two", "fill", "range"], "sum"),
        node("Mul", ["eye", "sum"], "diagonal"),
        node("MatMul", ["x", "diagonal"], "y"),
    ]
    x = np.random.default_rng(0).standard_normal((2, 2)).astype(np.float32)
    model = onnx_models.model(nodes, {"x": x.shape}, ["y"])
    program = loaded(model, tmp_path)
    assert targets(program) == ["aten::linear"]
    found = program.module()(torch.from_numpy(x))["y"].numpy()
    assert np.array_equal(found, onnx_models.run(model, {"x": x})[0])


@pytest.mark.parametrize("shared", [False, True])
def test_a_matrix_product_takes_the_constant_that_is_added_to_it(shared: bool, tmp_path: Path) -> None:
    """Unless something else reads the product."""
    nodes = [
        node("MatMul", ["x", "w"], "p"),
        node("Add", ["b", "p"], "s"),
        node("Relu", ["p" if shared else "s"], "r"),
    ]
    w, b = np.random.default_rng(0).standard_normal((2, 4, 4)).astype(np.float32)
    model = onnx_models.model(nodes, {"x": (2, 4)}, ["s", "r"], {"w": w, "b": b[0]})
    program = loaded(model, tmp_path)
    assert ("aten::add" in targets(program)) == shared
    x = np.ones((2, 4), np.float32)
    found = program.module()(torch.from_numpy(x))
    for name, wanted in zip(("s", "r"), onnx_models.run(model, {"x": x}), strict=True):
        np.testing.assert_allclose(found[name].numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_a_constant_added_along_another_axis_stays_an_addition(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "w"], "p"), node("Add", ["p", "b"], "y")]
    constants = {"w": np.ones((4, 4), np.float32), "b": np.ones((4, 1), np.float32)}
    program = loaded(onnx_models.model(nodes, {"x": (4, 4)}, ["y"], constants), tmp_path)
    assert targets(program) == ["aten::linear", "aten::add"]


def test_names_of_inputs_and_outputs(tmp_path: Path) -> None:
    nodes = [node("Add", ["input.1", "2"], "out.0"), node("Relu", ["out.0"], "probs")]
    model = onnx_models.model(nodes, {"input.1": (2,), "2": (2,)}, ["out.0", "probs"])
    program = loaded(model, tmp_path)
    assert [i.name for i in user_inputs(program)] == ["input_1", "input_2"]
    assert [o.name for o in user_outputs(program)] == ["out.0", "probs"]


def test_modules_are_called_as_the_nodes_are(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "/layer.1/Relu"),
        helper.make_node("Neg", ["a"], ["b"], "/layer.1/Relu"),
        helper.make_node("Abs", ["b"], ["c"], "/layer.1/Relu.call"),
        helper.make_node("Exp", ["c"], ["d"], ""),
        helper.make_node("Sqrt", ["d"], ["y"], "..."),
    ]
    program = loaded(onnx_models.model(nodes, {"x": (2,)}, ["y"]), tmp_path)
    paths = [
        list(n.meta["nn_module_stack"].values())[-1][0]
        for n in program.graph.nodes
        if n.op == "call_function"
    ]
    assert paths == ["/layer.1/Relu", "/layer.1/Relu_1", "/layer.1/Relu.call_1", "Exp_3", "_._._._"]


def test_a_local_function_is_inlined(tmp_path: Path) -> None:
    body = [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Neg", ["r"], ["b"])]
    function = helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 21)])
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x"], ["y"], domain="mine")], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("mine", 1)]
    model = helper.make_model(
        graph, functions=[function], opset_imports=opsets, ir_version=onnx_models.IR_VERSION
    )
    assert targets(loaded(model, tmp_path)) == ["aten::relu", "aten::neg"]


@pytest.mark.parametrize(
    ("nodes", "error", "message"),
    [
        ([node("Foo", ["x"], "y", domain="mine")], UnsupportedOperatorError, "mine.Foo at node 'y': it has no conversion"),
        ([node("NonZero", ["x"], "y")], UnsupportedOperatorError, "NonZero at node 'y': it has no conversion"),
        ([node("Relu", ["z"], "y")], FrontendError, "Relu at node 'y' reads 'z', which no node before it computes"),
        ([node("Relu", ["x"], "a")], FrontendError, "output 'y' of the ONNX graph is computed by no node"),
        ([node("Constant", [], "y", value_float=1.0)], FrontendError, "output 'y' of the ONNX graph is constant"),
        ([node("Constant", [], "s", value_floats=[1.0] * 4), node("MatMul", ["x", "s"], "y")], UnsupportedOperatorError, "MatMul at node 'y' .*cannot be converted"),
        ([node("Cast", ["x"], "n", to=TensorProto.INT64), node("Reshape", ["x", "n"], "y")], UnsupportedOperatorError, r"Reshape at node 'y': its input 1 \('n'\) is computed at run time"),
        ([node("MaxPool", ["x"], "y", "i", kernel_shape=[1]), node("Neg", ["i"], "n")], UnsupportedOperatorError, "MaxPool at node 'y': its indices are used"),
        ([node("Relu", ["x"], "a"), node("Softmax", ["a"], "y", axis=5)], UnsupportedOperatorError, "its axis is 5"),
        ([node("Cast", ["x"], "y", to=TensorProto.FLOAT8E4M3FN)], UnsupportedOperatorError, "element type FLOAT8E4M3FN"),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_named(
    nodes: list[onnx.NodeProto], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        loaded(onnx_models.model(nodes, {"x": (1, 2, 3)}, ["y"]), tmp_path)


RELU = [node("Relu", ["x"], "y")]


@pytest.mark.parametrize(
    ("shape", "dims", "wanted"),
    [
        (("N", 3), {}, (1, 3)),
        (("N", 3), {"N": 4}, (4, 3)),
        (("N", "T"), {"T": 5}, (1, 5)),
        (("N", "T"), {"x.1": 5, "x.0": 2}, (2, 5)),
        ((2, 3), {}, (2, 3)),
    ],
)
def test_symbolic_extents(shape: tuple[Any, ...], dims: dict[str, int], wanted: Any, tmp_path: Path) -> None:
    program = loaded(onnx_models.model(RELU, {"x": shape}, ["y"]), tmp_path, dims=dims)
    assert user_inputs(program)[0].shape == wanted


def test_extents_that_are_unknown_or_do_not_fit_are_refused(tmp_path: Path) -> None:
    model = onnx_models.model(RELU, {"x": ("N", "T")}, ["y"])
    with pytest.raises(FrontendError, match=r"axis 1 of input 'x' is symbolic; .* --dim T=N"):
        loaded(model, tmp_path)
    with pytest.raises(ConfigError, match="dim 'S' is no symbolic extent of the model; it has: N, T"):
        loaded(model, tmp_path, dims={"S": 2, "T": 2})
    with pytest.raises(ConfigError, match="2 shapes are given; the ONNX model has 1 inputs"):
        loaded(model, tmp_path, shapes=[(1, 2), (3, 4)])


def test_files_that_are_no_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FrontendError, match=r"is missing; give an \.onnx file"):
        load_onnx(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 100)
    with pytest.raises(FrontendError, match="is no ONNX model or is damaged"):
        load_onnx(tmp_path / "bad.onnx")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(FrontendError, match="holds no graph"):
        load_onnx(tmp_path / "empty.onnx")
    old = onnx_models.model(RELU, {"x": (2,)}, ["y"], opset=6)
    with pytest.raises(FrontendError, match="has opset 6; known are 7 to"):
        load_onnx(onnx_models.save(old, tmp_path / "old.onnx"))
    with pytest.raises(FrontendError, match="has no input"):
        load_onnx(onnx_models.save(onnx_models.model(RELU, {}, ["y"]), tmp_path / "none.onnx"))


def test_missing_external_data_is_said(tmp_path: Path) -> None:
    weights = {"w": np.ones((64, 64), np.float32)}
    model = onnx_models.model([node("MatMul", ["x", "w"], "y")], {"x": (2, 64)}, ["y"], weights)
    onnx.save(model, str(tmp_path / "m.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert targets(load_onnx(tmp_path / "m.onnx")) == ["aten::linear"]
    (tmp_path / "w.bin").unlink()
    with pytest.raises(FrontendError, match="external data must lie beside it"):
        load_onnx(tmp_path / "m.onnx")
