"""Respelled operators: the same values to the last rounding, and none of the old spellings left."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_networks import Calls, quantized
from torch import nn

from qcompiler.config import CompileConfig
from qcompiler.quantization.canonical import canonicalize

Function = Callable[[torch.Tensor], torch.Tensor]

SPELLINGS: list[tuple[str, Function]] = [
    ("alias", lambda x: x.clone() + 1),
    ("_unsafe_view", lambda x: x.transpose(1, 2).reshape(1, 8, -1)),
    ("add", lambda x: torch.add(x, x.abs(), alpha=-0.5)),
    ("add", lambda x: torch.add(x, 3, alpha=2)),
    ("sub", lambda x: torch.sub(x, x.abs(), alpha=2)),
    ("sub", lambda x: torch.sub(x, 1.5, alpha=2)),
    ("rsub", lambda x: 1.0 - x),
    ("rsub", lambda x: torch.rsub(x, 1.5, alpha=2)),
    ("celu", lambda x: F.celu(x, 0.3)),
    ("selu", F.selu),
    ("mish", F.mish),
    ("channel_shuffle", nn.ChannelShuffle(4)),
    ("pixel_shuffle", nn.PixelShuffle(2)),
    ("avg_pool2d", lambda x: F.avg_pool2d(x, 2, divisor_override=3)),
    ("avg_pool2d", lambda x: F.avg_pool2d(x, (3, 2), (2, 3), (1, 0), divisor_override=5)),
    ("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=4)),
    ("avg_pool2d", lambda x: F.avg_pool2d(x, 3, 3, ceil_mode=True, divisor_override=4)),
    ("conv2d", nn.Conv2d(8, 4, (2, 5), padding="same", dilation=(3, 1))),
]


def _graph(function: Function) -> torch.fx.GraphModule:
    program = torch.export.export(Calls(lambda m, x: function(x)).eval(), (torch.zeros(1, 8, 6, 6),))
    return program.run_decompositions({}).module(check_guards=False)


@pytest.mark.parametrize(("name", "function"), SPELLINGS)
def test_values_stay_what_they_were(name: str, function: Function) -> None:
    model = _graph(function)
    canonicalize(model)
    x = 3 * torch.randn(1, 8, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(x), function(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "function"), SPELLINGS)
def test_no_old_spelling_is_left_and_shapes_are_known(name: str, function: Function) -> None:
    model = _graph(function)
    expected = next(n for n in model.graph.nodes if n.op == "output").all_input_nodes[0].meta["val"].shape
    canonicalize(model)
    nodes = [n for n in model.graph.nodes if n.op == "call_function"]
    forbidden = {"alias", "_unsafe_view", "rsub", "celu", "selu", "mish", "channel_shuffle", "pixel_shuffle"}
    for node in nodes:
        assert node.target._schema.name.removeprefix("aten::") not in forbidden
        assert node.target is not torch.ops.aten.conv2d.padding
        assert node.kwargs.get("alpha", 1) == 1
        assert len(node.args) < 7 or node.target is not torch.ops.aten.avg_pool2d.default
    assert nodes[-1].meta["val"].shape == expected


@pytest.mark.parametrize(
    "function",
    [lambda x: x + x.abs(), lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), F.relu],
)
def test_the_rest_is_left_alone(function: Function) -> None:
    model = _graph(function)
    before = [(n.target, n.args[1:], n.kwargs) for n in model.graph.nodes if n.op == "call_function"]
    canonicalize(model)
    after = [(n.target, n.args[1:], n.kwargs) for n in model.graph.nodes if n.op == "call_function"]
    assert str(after) == str(before)


def test_reports_name_the_operator_that_the_user_wrote() -> None:
    module = Calls(lambda m, x: m.c2(F.mish(m.c1(x))), c1=nn.Conv2d(3, 4, 3), c2=nn.Conv2d(4, 4, 3))
    result = quantized(module, CompileConfig(keep_float=("mish",)))
    assert {f.operator for f in result.float_operators} == {"mish"}
    assert quantized(module).float_operators == []


def _shuffled_by_reshapes(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(1, (2, 2)).transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize("shuffle", [nn.ChannelShuffle(2), _shuffled_by_reshapes])
def test_shuffled_channels_keep_their_scale(shuffle: Function) -> None:
    result = quantized(
        Calls(lambda m, x: m.c2(shuffle(m.c1(x))), c1=nn.Conv2d(3, 4, 3), c2=nn.Conv2d(4, 4, 3))
    )
    assert result.float_operators == []
    scales = {n.args[1:3] for n in result.nodes if "quantize_per_tensor" in str(n.target)}
    assert len(scales) == 2  # the input's and the shuffled tensor's
