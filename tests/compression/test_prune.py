"""Pruned modules are smaller, and compute what the original does without the removed channels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from small_networks import SHAPE, Calls, settle
from torch import nn
from torch.nn import functional as F

import qcompiler
from qcompiler.compression.channels import ChannelGraph, multiplications
from qcompiler.errors import CompressionError


def residual() -> nn.Module:
    return Calls(
        lambda m, x: m.fc(block(m, F.relu(m.n0(m.c0(x)))).mean((2, 3))),
        c0=nn.Conv2d(3, 16, 3, padding=1), n0=nn.BatchNorm2d(16),
        c1=nn.Conv2d(16, 12, 3, padding=1), n1=nn.BatchNorm2d(12),
        c2=nn.Conv2d(12, 16, 3, padding=1, bias=False), n2=nn.BatchNorm2d(16), fc=nn.Linear(16, 5),
    )  # fmt: skip


def block(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.relu(m.n2(m.c2(F.relu(m.n1(m.c1(x))))).add_(x))


def mobile() -> nn.Module:
    """Depthwise between pointwise layers, with a gate that is broadcast over the pixels."""
    return Calls(
        lambda m, x: m.fc(torch.flatten(gated(m, F.hardswish(m.n(m.stem(x)))), 1)),
        stem=nn.Conv2d(3, 16, 3, 2, 1, bias=False), n=nn.BatchNorm2d(16),
        depthwise=nn.Conv2d(16, 16, 3, 2, 1, groups=16),
        squeeze=nn.Conv2d(16, 8, 1), expand=nn.Conv2d(8, 16, 1), fc=nn.Linear(16 * 16, 4),
    )  # fmt: skip


def gated(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = F.relu6(m.depthwise(x))
    return x * F.hardsigmoid(m.expand(F.relu(m.squeeze(F.adaptive_avg_pool2d(x, 1)))))


def dense() -> nn.Module:
    return Calls(
        lambda m, x: m.fc(F.max_pool2d(joined(m, m.a(x)), 14).flatten(1)),
        a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 6, 1), norm=nn.BatchNorm2d(14), c=nn.Conv2d(14, 10, 1), fc=nn.Linear(10, 3),
    )  # fmt: skip


def joined(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return m.c(F.relu(m.norm(torch.cat([x, F.relu(m.b(x))], 1))))


def flat(make: Callable[[], nn.Module]) -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    return settle(make()), (torch.randn(2, *SHAPE[1:]),)


def macs(model: nn.Module, example: tuple[torch.Tensor, ...]) -> int:
    """Multiply-accumulates of one sample, counted in the modules that run."""
    total = 0

    def count(module: nn.Module, _: object, result: torch.Tensor) -> None:
        nonlocal total
        total += result[0].numel() * module.weight[0].numel()

    hooks = [m.register_forward_hook(count) for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    model(*example)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("make", [residual, mobile, dense])
@pytest.mark.parametrize("importance", ["l1", "taylor"])
def test_the_module_is_smaller_by_what_was_asked(make: Callable[[], nn.Module], importance: str) -> None:
    model, example = flat(make)
    model(*example).square().sum().backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pruned = qcompiler.prune_channels(model, example, 0.4, importance=importance)
    assert pruned.multiplications == (macs(model, example), macs(pruned.model, example))
    assert pruned.multiplications[1] <= 0.6 * pruned.multiplications[0]
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    # It trains on, and has the numbers of channels that its weights have.
    pruned.model.train()(*example).sum().backward()
    for module in pruned.model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups)
    # prune checks its result itself; the numbers it compares with are these.
    assert {name: tuple(p.shape) for name, p in pruned.model.named_parameters()}.keys() == {
        name for name, _ in model.named_parameters()
    }


@pytest.mark.parametrize("make", [residual, mobile, dense])
def test_channels_that_nobody_reads_go_without_a_trace(make: Callable[[], nn.Module]) -> None:
    """With the channels of least weight silenced beforehand the outputs stay what they were."""
    model, example = flat(make)
    dead = {"residual": ("c1", "n1", "c2"), "mobile": ("squeeze", None, "expand"), "dense": ("c", None, "fc")}
    producer, norm, reader = dead[make.__name__]
    with torch.no_grad():
        model.get_submodule(producer).weight[::2] *= 1e-3
        model.get_submodule(reader).weight[:, ::2] = 0
    if norm is not None:
        assert model.get_submodule(norm).weight is not None
    others = tuple(n for n, _ in model.named_modules() if n and n not in (producer, norm))
    count = model.get_submodule(producer).weight.shape[0] // 2
    share = 1 / macs(model, example)  # one step of `multiple` is more than that
    pruned = qcompiler.prune_channels(model, example, share, multiple=count, keep=others)
    assert len(pruned.model.get_submodule(producer).weight) == count
    torch.testing.assert_close(pruned.model(*example), model(*example), rtol=1e-4, atol=1e-5)


def test_residual_channels_go_together() -> None:
    model, example = flat(residual)
    with torch.no_grad():
        for layer in (model.c0, model.c2):
            layer.weight[3] = 0  # of both summands, so it is the least
    pruned = qcompiler.prune_channels(model, example, 1e-6, keep=("c1",))
    small = pruned.model
    assert (small.c0.out_channels, small.c2.out_channels, small.fc.in_features) == (15, 15, 15)
    assert (small.n0.num_features, small.n2.num_features, small.c1.in_channels) == (15, 15, 15)
    assert torch.equal(
        small.n2.running_mean, torch.cat([model.n2.running_mean[:3], model.n2.running_mean[4:]])
    )


def test_depthwise_follows_its_input_and_flattened_channels_their_pixels() -> None:
    model, example = flat(mobile)
    pruned = qcompiler.prune_channels(model, example, 0.2, keep=("squeeze",)).model
    width = pruned.stem.out_channels
    assert width < 16
    assert (pruned.depthwise.groups, pruned.expand.out_channels, pruned.fc.in_features) == (
        width,
        width,
        16 * width,
    )


def test_the_remaining_channels_are_a_multiple() -> None:
    model, example = flat(residual)
    pruned = qcompiler.prune_channels(model, example, 0.3, multiple=8)
    assert {layer.after for layer in pruned.layers if layer.after < layer.before} == {8}


def test_batch_norms_tell_the_importance() -> None:
    model, example = flat(residual)
    with torch.no_grad():
        model.n1.weight.fill_(1.0)
        model.n1.weight[[2, 5]] = 1e-4
    pruned = qcompiler.prune_channels(model, example, 0.12, importance="batch-norm", keep=("c0", "c2"))
    assert torch.equal(pruned.model.n1.weight, torch.ones_like(pruned.model.n1.weight))
    assert pruned.model.c1.out_channels == 10


def test_what_cannot_be_pruned_says_why() -> None:
    module = Calls(
        lambda m, x: m.d(F.pad(m.c(m.b(F.channel_shuffle(m.a(x), 2))), (0, 0, 0, 0, 2, 2))),
        a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 8, 1, groups=2), c=nn.Conv2d(8, 8, 1), d=nn.Conv2d(12, 8, 1),
    )  # fmt: skip
    with pytest.raises(CompressionError, match=r"reaches a reduction of 0\.0000 only, not 0\.5") as error:
        qcompiler.prune_channels(settle(module), (torch.randn(SHAPE),), 0.5)
    for reason in (
        "a.weight: aten", "b.weight: a grouped convolution", "c.weight: a fixed number of channels is padded",
        "d.weight: they are the model's output",
    ):  # fmt: skip
        assert reason in str(error.value)


def test_numbers_of_channels_in_the_code_are_found_out() -> None:
    written = Calls(
        lambda m, x: m.fc(m.a(x).mean((2, 3)).view(-1, 8)), a=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 2)
    )
    with pytest.raises(CompressionError, match=r"does not run .*a number of channels written into it"):
        qcompiler.prune_channels(settle(written), (torch.randn(3, *SHAPE[1:]),), 0.3)
    divided = Calls(
        lambda m, x: m.fc(m.a(x).sum((2, 3)) / m.a.out_channels), a=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 2)
    )
    with pytest.raises(CompressionError, match="computes something else than the original"):
        qcompiler.prune_channels(settle(divided), (torch.randn(3, *SHAPE[1:]),), 0.3)


def test_a_shared_layer_is_cut_once_for_all_its_calls() -> None:
    model = settle(
        Calls(
            lambda m, x: m.last(m.shared(F.relu(m.shared(m.first(x))))).mean((2, 3)),
            first=nn.Conv2d(3, 8, 1), shared=nn.Conv2d(8, 8, 1), last=nn.Conv2d(8, 2, 1),
        )
    )  # fmt: skip
    pruned = qcompiler.prune_channels(model, (torch.randn(SHAPE),), 0.3).model
    width = pruned.first.out_channels
    assert width < 8
    assert tuple(pruned.shared.weight.shape[:2]) == (width, width)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 1.0}, "reduction is 1.0"),
        ({"reduction": 0.4, "keep_at_least": 0.0}, "keep_at_least is 0.0"),
        ({"reduction": 0.4, "multiple": 0}, "multiple is 0"),
        ({"reduction": 0.4, "importance": "l7"}, "unknown importance 'l7'; known: l1, batch-norm, taylor"),
        ({"reduction": 0.4, "keep": ("c9",)}, "the model has no module 'c9'"),
        ({"reduction": 0.4, "importance": "taylor"}, "c0.weight has no gradient"),
        ({"reduction": 0.99}, "reaches a reduction of 0"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    model, example = flat(residual)
    model.zero_grad(set_to_none=True)
    with pytest.raises(CompressionError, match=message):
        qcompiler.prune_channels(model, example, **options)


def test_multiplications_are_counted_by_the_labels() -> None:
    model, example = flat(mobile)
    graph = ChannelGraph(torch.export.export(model, example))
    assert multiplications(graph.layers, len) == macs(model, example)
