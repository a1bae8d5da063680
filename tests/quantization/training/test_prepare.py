"""The module to train has the places, the scheme and, before it is trained, the bits of post-training quantization."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_networks import SHAPE, Calls, settle
from torch import nn

from qcompiler.config import CompileConfig
from qcompiler.errors import QuantizationError
from qcompiler.frontend.importer import import_program
from qcompiler.passes import pipeline
from qcompiler.quantization import quantize
from qcompiler.quantization.training import QATModule, prepare_training
from qcompiler.quantization.training.fake_quantize import FakeQuantize
from qcompiler.quantization.training.layers import QuantizedLayer
from qcompiler.reference import Interpreter
from qcompiler.targets.base import QuantizationRules

RULES = QuantizationRules()


def residual() -> nn.Module:
    return Calls(
        lambda m, x: m.fc(F.relu(m.n2(m.c2(F.relu(m.n1(m.c1(x))))) + m.short(x)).mean((2, 3))),
        c1=nn.Conv2d(3, 8, 3, padding=1, bias=False), n1=nn.BatchNorm2d(8),
        c2=nn.Conv2d(8, 8, 3, padding=1), n2=nn.BatchNorm2d(8, affine=False),
        short=nn.Conv2d(3, 8, 1), fc=nn.Linear(8, 5),
    )  # fmt: skip


def mobile() -> nn.Module:
    return Calls(
        lambda m, x: m.fc(torch.flatten(F.adaptive_avg_pool2d(gated(m, F.hardswish(m.stem(x))), 1), 1)),
        stem=nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)),
        depthwise=nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)),
        squeeze=nn.Conv2d(8, 4, 1), expand=nn.Conv2d(4, 8, 1),
        fc=nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4)),
    )  # fmt: skip


def gated(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = m.depthwise(x)
    return x * F.hardsigmoid(m.expand(F.relu(m.squeeze(x.mean((2, 3), keepdim=True)))))


def dense() -> nn.Module:
    """A concatenation, a batch norm of its own behind it, a pool, and a channel shuffle, whose view names the batch."""
    return Calls(
        lambda m, x: m.c3(F.channel_shuffle(F.max_pool2d(F.relu(m.norm(torch.cat([m.c1(x), m.c2(x)], 1))), 2), 2)),
        c1=nn.Conv2d(3, 4, 3), c2=nn.Conv2d(3, 4, 3, bias=False), norm=nn.BatchNorm2d(8), c3=nn.Conv2d(8, 4, 1, groups=2),
    )  # fmt: skip


def twice() -> nn.Module:
    """One convolution and its batch norm are called on two tensors, and a second batch norm follows one of them."""
    return Calls(
        lambda m, x: m.last(m.n2(m.n1(m.c(F.relu(m.n1(m.c(m.first(x))))))).flatten(1)),
        first=nn.Conv2d(3, 4, 3), c=nn.Conv2d(4, 4, 3, padding=1), n1=nn.BatchNorm2d(4), n2=nn.BatchNorm2d(4),
        last=nn.Linear(4 * 14 * 14, 3),
    )  # fmt: skip


def dead() -> nn.Module:
    """Channels whose weights are nothing beside their bias, and one that its batch norm multiplies by zero."""
    return Calls(
        lambda m, x: m.last(F.relu(m.n(m.c(x)))),
        c=nn.Conv2d(3, 4, 3), n=nn.BatchNorm2d(4), last=nn.Conv2d(4, 2, 1),
    )  # fmt: skip


NETWORKS = (residual, mobile, dense, twice, dead)


def network(make: Callable[[], nn.Module]) -> nn.Module:
    module = settle(make())
    if make is dead:
        with torch.no_grad():
            module.c.weight[1] = 1e-30
            module.n.weight[2] = 0.0
    return module


def samples(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *SHAPE[1:], generator=torch.Generator().manual_seed(seed))


def batches() -> list[tuple[torch.Tensor, ...]]:
    return [(x[None],) for x in samples(16)]


def exported(module: nn.Module, batch: int = 1) -> torch.export.ExportedProgram:
    return torch.export.export(module, (torch.zeros(batch, *SHAPE[1:]),))


def prepared(
    module: nn.Module, *, calibrated: bool = True, learned: bool = False, config: CompileConfig | None = None
) -> QATModule:
    return prepare_training(
        exported(module),
        RULES,
        config or CompileConfig(),
        other=exported(module, 2),
        batches=batches() if calibrated else None,
        learned_scales=learned,
    )


def train(module: QATModule, steps: int = 3) -> None:
    module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        module(samples(8, 50 + step)).square().mean().backward()
        optimizer.step()


def fakes(module: nn.Module) -> list[FakeQuantize]:
    return [m for m in module.modules() if isinstance(m, FakeQuantize)]


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("learned", [False, True])
def test_untrained_it_is_what_post_training_quantization_gives(
    make: Callable[[], nn.Module], learned: bool
) -> None:
    module = network(make)
    wanted, floats = quantize(exported(module), RULES, batches(), CompileConfig())
    qat = prepared(module, learned=learned)
    program = qat.program((torch.zeros(SHAPE),))
    assert list(qat.float_operators) == floats
    operators = [
        sorted(str(n.target) for n in p.graph.nodes if n.op == "call_function") for p in (wanted, program)
    ]
    assert operators[0] == operators[1]
    with torch.no_grad():
        for x in samples(8, 9):
            assert torch.equal(wanted.module()(x[None]), program.module()(x[None]))


@pytest.mark.parametrize("make", NETWORKS)
@pytest.mark.parametrize("learned", [False, True])
def test_trained_it_computes_what_the_integers_compute(make: Callable[[], nn.Module], learned: bool) -> None:
    qat = prepared(network(make), calibrated=False, learned=learned)
    train(qat)
    program = qat.eval().program((torch.zeros(SHAPE),))
    interpreter = Interpreter(pipeline.to_integer(import_program(program), pipeline.Dump(None)).module)
    x = samples(8, 9)
    with torch.no_grad():
        actual = qat(x).numpy()
    expected = np.concatenate([interpreter.run([sample[None].numpy()])[0].array for sample in x])
    # Sums of float32 are not exact, and residuals are added in fixed point: at a border between two steps a value
    # falls on the other side, and what is computed from it moves by less than a step.
    assert np.abs(actual - expected).max() <= np.ptp(expected) / 255


@pytest.mark.parametrize("make", NETWORKS)
def test_every_parameter_is_trained_and_the_model_itself_is_left_alone(make: Callable[[], nn.Module]) -> None:
    module = network(make)
    before = copy.deepcopy(module.state_dict())
    qat = prepared(module, calibrated=False, learned=True)
    train(qat)
    missing = {name for name, p in qat.named_parameters() if p.requires_grad and p.grad is None}
    assert not missing
    own = {tuple(p.shape) for p in module.parameters()}
    assert own <= {tuple(p.shape) for p in qat.parameters() if p.grad is not None}
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_a_batch_norm_learns_from_what_the_quantized_layer_gives() -> None:
    qat = prepared(network(residual), calibrated=False)
    qat.train()
    (layer,) = [m for m in qat.modules() if isinstance(m, QuantizedLayer) and m.bias is None and m.norm]
    norm = layer.norm
    assert norm is not None
    expected = copy.deepcopy(norm)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    layer.register_forward_hook(lambda _, args, result: seen.append((args[0].detach(), result.detach())))
    with torch.no_grad():
        gain = (norm.weight / torch.sqrt(norm.running_var + norm.eps)).reshape(-1, 1, 1, 1)
        folded, bias = layer.folded()
        assert layer.weights is not None
        qat(samples(8))  # gives the first ranges, which the smallest scales depend on
        norm.load_state_dict(expected.state_dict())
        seen.clear()
        rounded = layer.weights(folded, bias) / gain
        qat(samples(8))
    ((x, result),) = seen
    with torch.no_grad():
        wanted = expected(F.conv2d(x, rounded, None, padding=1))
    # Dividing the rounded weights by the gain costs a last digit.
    torch.testing.assert_close(result, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, expected.running_var, rtol=1e-5, atol=1e-6)
    assert not torch.equal(norm.running_mean, torch.zeros_like(norm.running_mean))


def test_frozen_it_trains_exactly_what_it_evaluates() -> None:
    qat = prepared(network(mobile), calibrated=False)
    train(qat)
    qat.freeze()
    qat.train()
    statistics = {k: v.clone() for k, v in qat.named_buffers()}
    x = samples(8, 9)
    with torch.no_grad():
        trained = qat(x)
        assert torch.equal(trained, qat.eval()(x))
    train(qat)
    changed = {k for k, v in qat.named_buffers() if not torch.equal(v, statistics[k])}
    assert not changed
    with torch.no_grad():
        assert not torch.equal(trained, qat.eval()(x))


def test_not_frozen_statistics_move() -> None:
    qat = prepared(network(mobile), calibrated=False)
    train(qat)
    before = {k: v.clone() for k, v in qat.named_buffers()}
    train(qat)
    changed = {k for k, v in qat.named_buffers() if not torch.equal(v, before[k])}
    assert any("running_mean" in k for k in changed)
    assert any(k.endswith(".high") for k in changed)


def test_only_the_ranges_or_only_the_batch_norms_can_be_frozen() -> None:
    for frozen, moving in (("ranges", "running_mean"), ("batch_norms", ".high")):
        qat = prepared(network(residual), calibrated=False)
        train(qat)
        qat.freeze(**{name: name == frozen for name in ("ranges", "batch_norms")})
        before = {k: v.clone() for k, v in qat.named_buffers()}
        train(qat)
        changed = {k for k, v in qat.named_buffers() if not torch.equal(v, before[k])}
        still = "running_mean" if moving == ".high" else ".high"
        assert any(moving in k for k in changed), frozen
        assert not any(still in k for k in changed), frozen


def test_a_saved_state_goes_on_where_it_was() -> None:
    module = network(mobile)
    first = prepared(module, calibrated=False, learned=True)
    train(first)
    first.freeze()
    second = prepared(module, calibrated=False, learned=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for qat in (first, second):
        train(qat)
        qat.eval()
    with torch.no_grad():
        assert torch.equal(first(samples(4)), second(samples(4)))


def test_learned_scales_move_and_are_compiled() -> None:
    qat = prepared(network(residual), learned=True)
    before = [f.scale.detach().clone() for f in fakes(qat)]
    multiples = [p for name, p in qat.named_parameters() if name.endswith(".multiple")]
    train(qat)
    assert all(not torch.equal(f.scale, old) for f, old in zip(fakes(qat), before, strict=True))
    assert all((p != 1).any() for p in multiples)
    program = qat.program((torch.zeros(SHAPE),))
    q = torch.ops.quantized_decomposed.quantize_per_tensor.default
    compiled = {n.args[1] for n in program.graph.nodes if n.target is q}
    assert compiled == {float(f.positive_scale()) for f in fakes(qat)}


def test_a_layer_kept_in_float_trains_with_its_batch_norm() -> None:
    qat = prepared(network(residual), config=CompileConfig(keep_float=("c1",)))
    assert [f.operator for f in qat.float_operators][:1] == ["conv2d"]
    train(qat)
    assert all(p.grad is not None for p in qat.parameters())
    program = qat.program((torch.zeros(SHAPE),))
    convolutions = [n for n in program.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    floats = [n for n in convolutions if n.args[1].op == "placeholder"]
    assert len(floats) == 1


def test_any_batch_size_can_be_trained() -> None:
    for make in NETWORKS:
        qat = prepared(network(make)).eval()
        x = samples(5)
        with torch.no_grad():
            assert qat(x).shape[0] == 5
            torch.testing.assert_close(qat(x[:1]), qat(x)[:1], rtol=0.05, atol=0.05)


def test_an_exported_program_has_one_batch_size() -> None:
    qat = prepare_training(exported(network(dense)), RULES, CompileConfig(), batches=batches()).eval()
    with torch.no_grad():
        qat(samples(1))
        with pytest.raises(
            QuantizationError, match=r"batches of 1 only, and got 5; prepare a torch\.nn\.Module"
        ):
            qat(samples(5))


def test_features_by_the_name_of_their_module() -> None:
    module = network(mobile)
    qat = prepared(module).eval()
    x = samples(4)
    with torch.no_grad():
        outputs, features = qat.tap(("depthwise", "squeeze"))(x)
        assert torch.equal(outputs, qat(x))
    assert {k: tuple(v.shape) for k, v in features.items()} == {
        "depthwise": (4, 8, 8, 8),
        "squeeze": (4, 4, 1, 1),
    }
    seen: list[torch.Tensor] = []
    module.depthwise.register_forward_hook(lambda _, __, result: seen.append(result))
    with torch.no_grad():
        module(x)
    # Two layers of 8 bits: a few steps of a range of about 4.
    assert (features["depthwise"] - seen[0]).abs().max() < 0.2
    steps = features["depthwise"].unique()
    assert len(steps) <= 256
    with pytest.raises(QuantizationError, match=r"no module 'nothing'.*there are: .*depthwise"):
        qat.tap(("nothing",))


def test_without_a_range_nothing_is_computed() -> None:
    qat = prepared(network(residual), calibrated=False)
    with pytest.raises(QuantizationError, match="range of x is not known yet; train a batch first"):
        qat.eval()(samples(1))
    with pytest.raises(QuantizationError, match="range of x is not known yet; train the module first"):
        qat.program((torch.zeros(SHAPE),))


def test_training_that_diverged_is_told() -> None:
    qat = prepared(network(residual), calibrated=False)
    with pytest.raises(QuantizationError, match="x takes values that are NaN or infinite in training"):
        qat.train()(samples(2) / 0)
    qat = prepared(network(residual))
    with torch.no_grad():
        next(qat.parameters()).fill_(float("nan"))
    with pytest.raises(QuantizationError, match="NaN or infinite after training; lower the learning rate"):
        qat.program((torch.zeros(SHAPE),))
