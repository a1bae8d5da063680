"""Equalization keeps the function, makes ranges alike, and says what it leaves alone."""

from __future__ import annotations

import pytest
import torch
from prepared import BATCHES, damaged, float_graph, plain
from small_networks import Calls
from torch import nn

from qcompiler.quantization.batch_norms import NORMAL
from qcompiler.quantization.optimize.effects import Batch, Change
from qcompiler.quantization.optimize.equalize import equalize, smooth


@torch.no_grad()
def changed(module: nn.Module, method=equalize, batches: list[Batch] = BATCHES) -> tuple[nn.Module, Change]:
    """The graph after the change, which is checked to compute what it did."""
    graph = float_graph(module.eval(), batches)
    before = torch.cat([graph(*b) for b in batches])
    change = method(graph, batches)
    after = torch.cat([graph(*b) for b in batches])
    # Weights were multiplied in float64 and stored in float32; sums round differently.
    assert torch.allclose(after, before, rtol=1e-4, atol=1e-5 * float(before.abs().max()))
    return graph, change


def channel_ranges(graph: nn.Module, name: str) -> torch.Tensor:
    """Largest magnitude of each channel that node ``name`` gives."""
    found = []
    interpreter = torch.fx.Interpreter(graph)
    run_node = interpreter.run_node

    def watch(node):
        value = run_node(node)
        if node.name == name:
            found.append(value.abs().amax(dim=(0, 2, 3)))
        return value

    interpreter.run_node = watch
    for batch in BATCHES:
        interpreter.run(*batch)
    return torch.stack(found).amax(dim=0)


def test_an_outlier_channel_gets_the_range_of_the_others() -> None:
    before = channel_ranges(float_graph(damaged()), "relu_1")
    graph, change = changed(damaged())
    after = channel_ranges(graph, "relu_1")
    assert change.changed == 3
    assert before.max() / before.median() > 100
    assert after.max() / after.median() < 5
    assert float(after.max()) == pytest.approx(float(before.max()), rel=1e-3)


def test_normals_are_scaled_with_the_layer() -> None:
    original, graph = float_graph(damaged()), changed(damaged())[0]
    for name in ("c2", "c3"):
        old, new = (
            next(n for n in g.graph.nodes if NORMAL in n.meta and _module(n) == name)
            for g in (original, graph)
        )
        ratio = _bias(graph, new) / _bias(original, old)
        assert torch.allclose(new.meta[NORMAL].mean / old.meta[NORMAL].mean, ratio, rtol=1e-5)
        assert torch.allclose(new.meta[NORMAL].deviation / old.meta[NORMAL].deviation, ratio, rtol=1e-5)


def _module(node) -> str:
    return list(node.meta["nn_module_stack"].values())[-1][0]


def _bias(graph, node) -> torch.Tensor:
    return getattr(graph, str(node.args[2].target)).double()


def test_depthwise_convolutions_take_the_whole_range() -> None:
    module = Calls(lambda m, x: m.c2(m.c1(x).relu()), c1=nn.Conv2d(3, 8, 1), c2=nn.Conv2d(8, 8, 3, groups=8))
    with torch.no_grad():
        module.c1.weight *= torch.logspace(-1, 1, 8).reshape(-1, 1, 1, 1)
    after = channel_ranges(changed(module)[0], "relu")
    # Up to the floor under channels that are next to silent on the data.
    assert after.max() / after.median() < 1.01


def test_grouped_convolutions_and_flattened_channels() -> None:
    module = Calls(
        lambda m, x: m.fc(torch.flatten(nn.functional.max_pool2d(m.c2(m.c1(x).relu()).relu(), 4), 1)),
        c1=nn.Conv2d(3, 8, 3, padding=1),
        c2=nn.Conv2d(8, 12, 3, padding=1, groups=4),
        fc=nn.Linear(12 * 16, 5),
    )
    assert changed(module)[1] == Change(2, ("output stands between the layers",))


def test_two_layers_that_read_one_tensor_are_scaled_together() -> None:
    module = Calls(
        lambda m, x: (lambda y: m.c2(y) * m.c3(y))(m.c1(x)),
        c1=nn.Conv2d(3, 8, 3), c2=nn.Conv2d(8, 4, 1), c3=nn.Conv2d(8, 4, 1),
    )  # fmt: skip
    assert changed(module)[1].changed == 1


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.c2((y := m.c1(x)).relu()) + y.mean(), "read by other than layers: mean, relu"),
        (lambda m, x: m.c2(m.c1(x).sigmoid()), "sigmoid stands between the layers"),
        (lambda m, x: m.c2(m.c1(x) + x), "add stands between the layers"),
        (lambda m, x: m.c2(m.c2(m.c1(x))), "the weight of conv2d is used more than once"),
        (
            lambda m, x: m.c2(m.c1(x).mean(1, True).expand(-1, 3, -1, -1)),
            "a mean over other than both spatial",
        ),
        (
            lambda m, x: m.c2(nn.functional.max_pool2d(m.c1(x).transpose(1, 2), 3, 1, 1).transpose(1, 2)),
            "max_pool2d moves over the channels",
        ),
    ],
)
def test_what_would_change_the_function_is_left_alone_with_the_reason(forward, reason: str) -> None:
    module = Calls(forward, c1=nn.Conv2d(3, 3, 1), c2=nn.Conv2d(3, 3, 1))
    graph = float_graph(module.eval())
    weights = [p.clone() for p in graph.parameters()]
    with torch.no_grad():
        change = equalize(graph, BATCHES)
    assert change.changed == 0
    assert any(reason in r for r in change.refused), change.refused
    assert all(torch.equal(a, b) for a, b in zip(weights, graph.parameters(), strict=True))


def relu6(scale: float) -> nn.Module:
    """Channels of the first layer reach from a tenth of the bound to ten times the bound, times ``scale``."""
    module = Calls(
        lambda m, x: m.c2(nn.functional.relu6(m.c1(x))), c1=nn.Conv2d(3, 8, 1), c2=nn.Conv2d(8, 4, 1)
    )
    with torch.no_grad():
        module.c1.weight *= scale * torch.logspace(-1, 1, 8).reshape(-1, 1, 1, 1)
    return module


def test_through_relu6_saturated_channels_keep_their_scale() -> None:
    before = channel_ranges(float_graph(relu6(1.0).eval()), "relu6")
    after = channel_ranges(changed(relu6(1.0))[0], "relu6")
    saturated = before == 6.0
    assert 0 < saturated.sum() < 8
    assert torch.equal(after[saturated], before[saturated])
    assert after[~saturated].min() / before[~saturated].min() > 1.5
    assert after.max() <= 6.0


def test_through_relu6_that_is_always_reached_nothing_is_scaled() -> None:
    _, change = changed(relu6(1000.0))
    assert change.changed == 0
    assert "all 8 channels reach the clamp's bound of 6 on the calibration data" in change.refused


class Normed(nn.Module):
    """A layer norm with an outlier channel, two linear layers behind it, and one behind a GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(16), nn.Linear(16, 24), nn.Linear(16, 24)
        self.c = nn.Linear(24, 4)
        with torch.no_grad():
            self.norm.weight[3] = 100.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        return self.c(nn.functional.gelu(self.a(y) + self.b(y)))


def test_smoothing_moves_ranges_behind_a_layer_norm() -> None:
    batches: list[Batch] = [(torch.randn(2, 5, 16),) for _ in range(4)]
    graph, change = changed(Normed(), smooth, batches)
    assert change == Change(1, ("no layer norm stands before the linear layer, but gelu",))
    weights = {name: p for name, p in graph.named_parameters() if "norm" in name and "weight" in name}
    (norm,) = weights.values()
    # The square root of the outlier's excess goes into the weights.
    assert 5.0 < norm[3] / norm.median() < 20.0


def test_channels_are_followed_through_transpositions() -> None:
    """As in attention whose batch is not the first axis, and in channels that were last for a while."""
    turned = Calls(lambda m, x: m.c2(m.c1(x).transpose(2, 3)), c1=nn.Conv2d(3, 3, 1), c2=nn.Conv2d(3, 3, 1))
    assert changed(turned)[1].changed == 1
    last = Calls(
        lambda m, x: m.b(m.c1(x).permute(0, 2, 3, 1).reshape(-1, 16)),
        c1=nn.Conv2d(3, 16, 1),
        b=nn.Linear(16, 4),
    )
    assert changed(last)[1].changed == 1
    norm = nn.LayerNorm(16)
    with torch.no_grad():
        norm.weight[3] = 100.0
    attention = nn.MultiheadAttention(16, 2)
    batches: list[Batch] = [(torch.randn(2, 5, 16),) for _ in range(4)]
    mixed = Calls(
        lambda m, x: m.attention(*[m.norm(x).transpose(0, 1)] * 3, need_weights=False)[0],
        norm=norm, attention=attention,
    )  # fmt: skip
    _, change = changed(mixed, smooth, batches)
    assert change.changed == 1
    assert all("transpose" not in reason for reason in change.refused), change.refused


def test_smoothing_leaves_convolutions_alone() -> None:
    assert changed(plain(), smooth)[1] == Change(
        0, ("no layer norm stands before the linear layer, but mean",)
    )
