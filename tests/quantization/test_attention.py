"""Attention in all its forms: respelled with the same values, and compiled with PyTorch's results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention as attention

import qcompiler
from qcompiler.quantization.canonical import canonicalize
from qcompiler.quantization.operator_classes import aten

X = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 1, 4, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
"""Of the second sample nothing may be looked at."""

Form = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

FORMS: dict[str, Form] = {
    "padding mask": lambda x, ids: attention(x, x, x, attn_mask=(ids != 0)[:, None, None]),
    "mask of queries and keys": lambda x, ids: attention(x, x, x, attn_mask=x[0, 0, :, :6] > 0),
    "scale": lambda x, ids: attention(x, x.flip(-1), x, scale=0.5),
    "scale and mask": lambda x, ids: attention(x, x, x, (ids != 0)[:, None, None], scale=2.0),
    "causal scale": lambda x, ids: attention(x, x, x, is_causal=True, scale=1.0),
    "float mask of two dimensions": lambda x, ids: attention(x, x, x, attn_mask=x[0, 0, :, :6]),
    "grouped heads": lambda x, ids: attention(x, x[:, :2], x[:, 2:], enable_gqa=True),
    "three dimensions": lambda x, ids: attention(x[0], x[0], x[1], attn_mask=x[0, :, :, :6] > 0),
    "two dimensions": lambda x, ids: attention(x[0, 0], x[0, 1], x[0, 2], attn_mask=x[1, 0, :, :6] > 0),
    "heads joined by a view": lambda x, ids: (
        attention(*[x.transpose(1, 2).contiguous().transpose(1, 2)] * 3).transpose(1, 2).flatten(2)
    ),
    "heads joined after positions": lambda x, ids: (
        attention(*[x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3)] * 3)
        .permute(2, 0, 1, 3)
        .reshape(12, 32)
    ),
    "nothing": lambda x, ids: attention(x, x, x),
    "causal": lambda x, ids: attention(x, x, x, is_causal=True),
    "float mask of infinities": lambda x, ids: attention(
        x, x, x, torch.where(ids != 0, 0.0, -torch.inf)[:, None, None]
    ),
    "float mask": lambda x, ids: attention(x, x, x, attn_mask=x[:, :1, :, :6]),
}


class All(nn.Module):
    def __init__(self, forms: list[Form]) -> None:
        super().__init__()
        self.forms = forms

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(form(x, ids) for form in self.forms)


def graph(form: Form) -> torch.fx.GraphModule:
    return torch.export.export(All([form]).eval(), (X, IDS)).run_decompositions({}).module(check_guards=False)


@pytest.mark.parametrize("name", FORMS)
def test_values_stay_what_they_were(name: str) -> None:
    model = graph(FORMS[name])
    canonicalize(model)
    targets = {n.target for n in model.graph.nodes}
    assert aten.scaled_dot_product_attention.default not in targets
    assert aten.softmax.int in targets
    # Sums of 6 or 8 float32 in another order.
    torch.testing.assert_close(model(X, IDS)[0], FORMS[name](X, IDS), rtol=1e-5, atol=1e-5)


def test_every_form_compiles_to_what_pytorch_computes(tmp_path: Path) -> None:
    model = All(list(FORMS.values())).eval()
    result = qcompiler.compile(model, (X, IDS), precision="fp32", target="x86-avx2", output=tmp_path / "b")
    found = qcompiler.load(result.bundle, threads=1).run(X, IDS)
    for name, value, expected in zip(FORMS, found, model(X, IDS), strict=True):
        # Float32, and exponentials of two libraries.
        torch.testing.assert_close(
            torch.from_numpy(value), expected, rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )
