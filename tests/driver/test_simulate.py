"""The module that computes what would be compiled, against what was compiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.errors import ConfigError, InputError


class TwoOutputs(nn.Module):
    """A residual, a table and two outputs, of which one has an operator that stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor, gain: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.sigmoid(self.first(x * gain))
        y = torch.relu(y + self.second(y)).mean((2, 3))
        return self.head(y), torch.softmax(y, 1)


@pytest.fixture(scope="module")
def model() -> TwoOutputs:
    torch.manual_seed(0)
    return TwoOutputs().eval()


def inputs(batch: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, 6, 7, generator=generator), torch.rand(batch, 3, 1, 1, generator=generator)


def test_every_bit_is_that_of_the_library(model: TwoOutputs, tmp_path: Path) -> None:
    example, calibration = inputs(2, 0), [inputs(2, k) for k in range(4)]
    options = {"calibration": calibration, "target": "x86-avx2"}
    result = qcompiler.compile(model, example, output=tmp_path / "bundle", **options)
    simulated = qcompiler.simulate(model, example, **options)
    assert simulated.float_operators == result.manifest.float_operators
    assert simulated.outputs == result.manifest.outputs
    compiled = qcompiler.load(result.bundle)
    x = inputs(6, 9)
    logits, shares = simulated(*x)
    parts = [compiled.run(*(t[k : k + 2].numpy() for t in x)) for k in (0, 2, 4)]
    assert np.array_equal(logits.numpy(), np.concatenate([p[0] for p in parts]))
    # TVM compiles both; how the sum of 8 is vectorized may differ, and each addition rounds by 2**-24.
    np.testing.assert_allclose(shares.numpy(), np.concatenate([p[1] for p in parts]), rtol=1e-6)
    by_name = simulated(dict(zip((s.name for s in simulated.inputs), x, strict=True)))
    assert torch.equal(by_name[0], logits)


def test_a_chip_that_is_not_there(model: TwoOutputs) -> None:
    example, calibration = inputs(1, 0), [inputs(1, k) for k in range(4)]
    here, there = (
        qcompiler.simulate(model, example, calibration=calibration, target=t)(*inputs(3, 5))[0]
        for t in ("x86-avx2", "arm-dotprod")
    )
    assert torch.equal(here, there)


def test_what_does_not_fit_is_refused(model: TwoOutputs) -> None:
    example = inputs(2, 0)
    options = {"calibration": [example], "target": "x86-avx2"}
    simulated = qcompiler.simulate(model, example, **options)
    x, gain = inputs(4, 1)
    with pytest.raises(
        InputError, match=r"'x' has shape \(3, 3, 6, 7\); expected \(2, 3, 6, 7\), or a multiple"
    ):
        simulated(x[:3], gain[:3])
    with pytest.raises(InputError, match="no common batch axis"):
        simulated(x, gain[:2])
    with pytest.raises(InputError, match="float64"):
        simulated(x.double(), gain)
    for other in ({"precision": "bf16"}, {"precision": "fp32", "weights_only": True}):
        with pytest.raises(ConfigError, match="simulate computes int8 and fp32 layers"):
            qcompiler.simulate(model, example, **other)
    with pytest.raises(ConfigError, match="gate measures"):
        qcompiler.simulate(model, example, gate=True, **options)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(10, 3)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        sequence, state = self.layer(x)
        state = state[0] if isinstance(state, tuple) else state
        return self.head(sequence[:, -1]), state


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_stay_in_float_and_have_pytorchs_states(kind: type[nn.RNNBase]) -> None:
    torch.manual_seed(0)
    model = Recurrent(kind(4, 5, 2, batch_first=True, bidirectional=True)).eval()
    batches = [(torch.randn(2, 3, 4),) for _ in range(4)]
    x = torch.randn(2, 3, 4)
    simulated = qcompiler.simulate(model, batches[0], calibration=batches, target="x86-avx2")
    with torch.no_grad():
        wanted = model(x)
    logits, state = simulated(x)
    # Sums of at most 10 float32 in another order, through six steps.
    np.testing.assert_allclose(state.numpy(), wanted[1].numpy(), atol=1e-6)
    # The linear layer behind it is in integers: within some steps of its inputs, 2/255 each.
    np.testing.assert_allclose(logits.numpy(), wanted[0].numpy(), atol=0.05)
    assert not {"dense", "linear"} & {f.operator for f in simulated.float_operators}
    name = {nn.LSTM: "lstm", nn.GRU: "gru", nn.RNN: "rnn_tanh"}[kind]
    reasons = {f.reason for f in simulated.float_operators}
    assert f"{name} has no integer kernel" in reasons
    assert not any(reason.startswith("zeros") for reason in reasons)
