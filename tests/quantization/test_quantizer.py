"""Quantization as a whole: options, weights at their extremes, refusals, and a trained network."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from small_networks import SHAPE, Calls, is_quantize, quantized
from torch import nn

from qcompiler.config import CalibrationMethod, CompileConfig
from qcompiler.errors import CalibrationError, QuantizationError
from qcompiler.quantization import quantize
from qcompiler.targets.base import QuantizationRules


def chain() -> Calls:
    return Calls(
        lambda m, x: m.fc(m.block(F.relu(m.first(x))).mean((2, 3))),
        first=nn.Conv2d(3, 4, 3), block=nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU()), fc=nn.Linear(4, 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (CompileConfig(skip_first=True), [("conv2d", "first", "skip_first")]),
        (CompileConfig(skip_last=True), [("linear", "fc", "skip_last")]),
        (CompileConfig(keep_float=("linear",)), [("linear", "fc", "keep_float")]),
        (CompileConfig(keep_float=("block.0",)), [("conv2d", "block.0", "keep_float")]),
    ],
)
def test_what_the_user_keeps_in_float(config: CompileConfig, expected: list[tuple[str, str, str]]) -> None:
    result = quantized(chain(), config)
    kept = [(f.operator, f.place.split(",")[0], f.reason) for f in result.float_operators]
    assert kept[: len(expected)] == expected or kept[-len(expected) :] == expected
    for operator in ("conv2d", "linear"):
        for layer in result.named(operator):
            path = list(layer.meta["nn_module_stack"].values())[-1][0]
            stays_float = (operator, path) in {(o, p) for o, p, _ in expected}
            assert (layer.args[1].op == "placeholder") == stays_float


def test_enclosing_module_keeps_all_that_is_inside() -> None:
    result = quantized(chain(), CompileConfig(keep_float=("block",)))
    assert [f.operator for f in result.float_operators] == ["conv2d", "relu"]


def test_unknown_name_to_keep_is_an_error_with_near_names() -> None:
    with pytest.raises(QuantizationError, match=r"'blok\.0'.*near: .*block\.0"):
        quantized(chain(), CompileConfig(keep_float=("blok.0",)))


def test_class_without_a_kernel_stays_in_float() -> None:
    rules = QuantizationRules(operators=QuantizationRules().operators - {"linear"})
    result = quantized(chain(), rules=rules)
    (record,) = result.float_operators
    assert (record.operator, record.reason) == ("linear", "the target has no integer kernel of class linear")


def test_without_elementwise_kernels_the_relu_is_not_fused() -> None:
    rules = QuantizationRules(operators=QuantizationRules().operators - {"elementwise"})
    result = quantized(chain(), rules=rules)
    assert {f.operator for f in result.float_operators} == {"relu"}


def test_zero_channels_and_zero_layers() -> None:
    module = chain()
    with torch.no_grad():
        module.first.weight[1] = 0
        module.block[0].weight.zero_()
    result = quantized(module)
    for name, scale in result.program.state_dict.items():
        if "scale" in name:
            assert (scale >= torch.finfo(torch.float32).tiny).all()
            assert torch.isfinite(scale).all()
    with torch.no_grad():
        output = result.program.module()(torch.randn(SHAPE))
        expected = module(torch.randn(SHAPE))  # constant: the second convolution multiplies by zero
    assert torch.allclose(output, expected, atol=0.02)


def test_input_that_is_always_zero() -> None:
    module = chain().eval()
    zeros = torch.zeros(SHAPE)
    program, _ = quantize(
        torch.export.export(module, (zeros,)), QuantizationRules(), [(zeros,)], CompileConfig()
    )
    layer = next(n for n in program.graph.nodes if n.target is torch.ops.aten.conv2d.default)
    buffers = program.graph_signature.inputs_to_buffers
    scales = program.state_dict[buffers[layer.args[1].args[1].name]]
    assert (scales * layer.args[0].args[1] >= torch.finfo(torch.float32).tiny).all()
    with torch.no_grad():
        assert torch.allclose(program.module()(zeros), module(zeros), atol=0.02)


def test_bias_beside_tiny_weights_fits_in_int32() -> None:
    module = chain()
    with torch.no_grad():
        module.first.weight[0] = 1e-12
        module.first.bias[0] = 3.0
    result = quantized(module)
    layer = result.named("conv2d")[0]
    _, scale_node, _ = layer.args[1].args[:3]
    buffers = result.program.graph_signature.inputs_to_buffers
    scale = result.program.state_dict[buffers[scale_node.name]]
    units = 3.0 / (float(scale[0]) * layer.args[0].args[1])
    assert units <= 2**30 * 1.001
    assert result.sqnr() > 20


def test_module_called_twice_has_one_weight() -> None:
    module = Calls(
        lambda m, x: m.last(m.shared(m.shared(m.first(x)))),
        first=nn.Conv2d(3, 4, 1), last=nn.Conv2d(4, 2, 1),
        shared=nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
    )  # fmt: skip
    result = quantized(module)
    _, once, twice, _ = result.named("conv2d")
    assert once.args[1].args[0] is twice.args[1].args[0]
    assert result.sqnr() > 25


def test_batch_norm_beside_another_user_of_the_convolution() -> None:
    def forward(m, x):
        x = m.c1(x)
        return m.c2(F.relu(m.n(x))) + x

    result = quantized(
        Calls(forward, c1=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(4), c2=nn.Conv2d(4, 4, 3, padding="same"))
    )
    assert len(result.named("conv2d")) == 3
    assert result.sqnr() > 25


def test_even_kernel_with_padding_same() -> None:
    result = quantized(
        Calls(lambda m, x: m.c2(m.c1(x)), c1=nn.Conv2d(3, 4, 4, padding="same"), c2=nn.Conv2d(4, 2, 1))
    )
    assert result.named("conv2d")[0].target is torch.ops.aten.conv2d.default
    assert result.sqnr() > 25


def test_ids_of_an_embedding_are_not_quantized() -> None:
    module = Calls(
        lambda m, x: m.c(m.table(x).permute(0, 3, 1, 2)), table=nn.Embedding(10, 4), c=nn.Conv2d(4, 4, 3)
    ).eval()
    ids = torch.randint(0, 10, (1, 8, 8))
    program, floats = quantize(
        torch.export.export(module, (ids,)), QuantizationRules(), [(ids,)], CompileConfig()
    )
    assert [f.operator for f in floats] == ["embedding"]
    assert not any(is_quantize(user) for n in program.graph.nodes if n.name == "x" for user in n.users)


def test_places_survive_quantization() -> None:
    result = quantized(chain())
    (layer,) = result.named("linear")
    assert list(layer.meta["nn_module_stack"].values())[-1][0] == "fc"


@pytest.mark.parametrize("method", get_args(CalibrationMethod))
def test_every_calibration_method(method: CalibrationMethod) -> None:
    config = CompileConfig(calibration_method=method, averaging_constant=0.2, progress=True)
    result = quantized(chain(), config)
    assert result.sqnr() > 20


def test_no_batches_is_an_error() -> None:
    program = torch.export.export(chain().eval(), (torch.randn(SHAPE),))
    with pytest.raises(CalibrationError, match="empty"):
        quantize(program, QuantizationRules(), [], CompileConfig())


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_an_error_with_the_place(value: float) -> None:
    module = chain().eval()
    with torch.no_grad():
        module.block[0].bias[0] = value
    program = torch.export.export(module, (torch.randn(SHAPE),))
    with pytest.raises(CalibrationError, match="block"):
        quantize(program, QuantizationRules(), [(torch.randn(SHAPE),)], CompileConfig())


def _digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images.astype(np.float32) / 16).reshape(-1, 1, 8, 8), torch.from_numpy(labels)


def test_trained_network_keeps_its_accuracy() -> None:
    images, labels = _digits()
    module = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6(),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(module.parameters(), 0.01)
    for _ in range(40):
        rows = torch.randint(0, 1200, (128,))
        optimizer.zero_grad()
        F.cross_entropy(module(images[rows]), labels[rows]).backward()
        optimizer.step()
    module.eval()

    def batches() -> Iterator[tuple[torch.Tensor]]:
        for image in images[:64]:
            yield (image[None],)

    program, floats = quantize(
        torch.export.export(module, (images[:1],)), QuantizationRules(), batches(), CompileConfig()
    )
    assert floats == []
    run = program.module()
    with torch.no_grad():
        expected = module(images[1200:1500]).argmax(1)
        actual = torch.cat([run(image[None]) for image in images[1200:1500]]).argmax(1)
    assert (expected == labels[1200:1500]).float().mean() > 0.9
    assert (expected == actual).float().mean() > 0.97
