"""What is random in training mode is found, and nothing of the model changes meanwhile."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from qcompiler.errors import FrontendError
from qcompiler.frontend.randomness import dropouts, random_modules


class Depth(nn.Module):
    """Stochastic depth: a sample's branch is dropped at random."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1).bernoulli_(0.5)


class Attention(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        heads = x[:, None, None]
        mixed = F.scaled_dot_product_attention(heads, heads, heads, dropout_p=0.1 if self.training else 0.0)
        return mixed[:, 0, 0]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.body = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3), Depth(), nn.Dropout(0.0), nn.ReLU())
        self.attention = Attention()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.attention(self.body(self.norm(x))), 0.2, self.training)


def test_random_modules_are_found_and_others_are_not() -> None:
    model = Network().eval()
    model.body.train()
    modes = [m.training for m in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seed = torch.random.get_rng_state()
    found = random_modules(model, (torch.randn(2, 8, generator=torch.Generator().manual_seed(0)),))
    assert found == (
        "body.1 (Dropout)",
        "body.2 (Depth)",
        "attention (Attention)",
        "the model (Network)",
    )
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.random.get_rng_state(), seed)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_a_model_without_randomness_has_none() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.0))
    assert random_modules(model, (torch.zeros(2, 3, 5, 5),)) == ()


def test_a_model_that_does_not_run_is_said_to() -> None:
    with pytest.raises(
        FrontendError, match="BatchNorm1d does not run in training mode: Expected more than 1"
    ):
        random_modules(nn.BatchNorm1d(4), (torch.zeros(1, 4),))


def test_dropouts_of_an_exported_program() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 4), nn.Dropout(0.0)).eval()
    program = torch.export.export(model, (torch.zeros(1, 4),))
    assert dropouts(program) == ("1 (dropout)",)
