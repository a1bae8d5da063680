"""Operators that TVM does not import, or imports wrongly, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from qcompiler import reference
from qcompiler.frontend import capture
from qcompiler.frontend.decompose import decompose
from qcompiler.frontend.importer import import_program, importable_operators
from qcompiler.passes import pipeline

X = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "select from the end": lambda x: x[:, -1].select(-1, -2),
    "one index": lambda x: x[:, torch.tensor([-1, 0])],
    "indices of the first axes": lambda x: x[torch.tensor([0, -1]), torch.tensor([1, -1])],
    "indices of the last axes": lambda x: x[:, torch.tensor([[0], [-1]]), torch.tensor([1, -1, 2])],
    "indices apart": lambda x: x[torch.tensor([0, -1]), :, torch.tensor([1, -1])],
    "masked fill": lambda x: x.masked_fill(x > 0, -1e9).softmax(-1),
    "nearest up": lambda x: F.interpolate(x[None], size=(7, 9)),
    "nearest down": lambda x: F.interpolate(x[None], size=(3, 2)),
    "nearest by a factor": lambda x: F.interpolate(x[None], scale_factor=(1.7, 2.3)),
    "nearest of a whole ratio": lambda x: F.interpolate(x[None], scale_factor=2),
    "linear": lambda x: F.interpolate(x, size=9, mode="linear"),
    "grid": lambda x: F.grid_sample(x[None], torch.linspace(-1.2, 1.2, 18).reshape(1, 3, 3, 2)),
    "layer norm without weights": lambda x: F.layer_norm(x, (4, 5)),
    "group norm without weights": lambda x: F.group_norm(x, 2),
    "rms norm": lambda x: F.rms_norm(x, (5,)),
    "variance": lambda x: (x.var(-1), x.var(1, unbiased=False), x.std(), x.std(-1)),
    "extremes": lambda x: (x.max(-1), x.min(1), x.amax(), x.amin(-1), x.max(1, keepdim=True)),
    "product": lambda x: x.prod(-1),
    "log of a sum": lambda x: x.logsumexp(-1),
    "all": lambda x: (x > -2).all(-1),
    "scatter": lambda x: x.scatter_add(1, torch.zeros(2, 1, 5, dtype=torch.long), x),
    "windows": lambda x: x.unfold(-1, 3, 2),
    "columns": lambda x: F.unfold(x[None], (2, 2)),
    "same padding": lambda x: F.conv1d(x, torch.full((3, 4, 2), 0.5), padding="same"),
    "repeat": lambda x: x.repeat_interleave(2, -1),
    "unshuffle": lambda x: F.pixel_unshuffle(x[None, :, :, :4], 2),
    "clamps": lambda x: (
        (x * 10).long().clamp(-3, 7),
        x.clamp(-0.5, 0.5),
        (x * 10).long().clamp_min(2),
        (x * 10).long().clamp(0.5, 2.5),
    ),
    "filled like": lambda x: (
        torch.zeros_like(x > 0, dtype=torch.float32) + torch.ones_like(x, dtype=torch.int32),
        torch.full_like(x, 2.5) * x,
        torch.full_like((x * 3).long(), 7),
    ),
    "integers with floats": lambda x: (x * 10).long() / 2 + (x > 0) * 0.5 + 0.25 * (x * 3).int(),
    "linear by a ratio": lambda x: F.interpolate(x[None], scale_factor=1.7, mode="bilinear"),
    "gates": lambda x: (F.glu(x, 1), F.threshold(x, 0.1, 20.0), F.hardshrink(x), F.logsigmoid(x)),
    "arithmetic": lambda x: (torch.lerp(x, x * 2, 0.3), torch.addcmul(x, x, x, value=0.5), x.frac()),
}


class Function(nn.Module):
    def __init__(self, function: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_are_those_of_pytorch(name: str) -> None:
    module = Function(FUNCTIONS[name])
    program = capture.capture(module, (X,))
    integer = pipeline.to_integer(import_program(program), pipeline.Dump(None))
    found = reference.Interpreter(integer.module).run([X.numpy()])
    wanted = [t.numpy() for t in pytree.tree_leaves(module(X))]
    assert len(found) == len(wanted)
    for value, expected in zip(found, wanted, strict=True):
        assert (value.array.shape, value.array.dtype) == (expected.shape, expected.dtype)
        # Sums of at most 20 float32 in another order, and functions of the C library.
        np.testing.assert_allclose(value.array, expected, rtol=1e-5, atol=1e-5)


def test_what_is_imported_is_left_alone() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.hardswish(self.norm(self.conv(x)))
            return self.linear(F.interpolate(x, scale_factor=2).mean((2, 3)))

    program = torch.export.export(Network().eval(), (torch.zeros(1, 3, 8, 8),))
    assert decompose(program, importable_operators()) is program


def test_names_of_modules_stay() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.linear = nn.RMSNorm(5), nn.Linear(5, 2)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.linear(self.norm(tokens)[:, -1])

    program = capture.capture(Network().eval(), (X,))
    assert [i.name for i in capture.user_inputs(program)] == ["tokens"]
    places = {p for n in program.graph.nodes for p, _ in (n.meta.get("nn_module_stack") or {}).values()}
    assert {"norm", "linear"} <= places
