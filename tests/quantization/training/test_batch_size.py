"""A graph of one batch size takes any, or says why it does not."""

from __future__ import annotations

import pytest
import torch
from small_networks import Calls
from torch import nn
from torch.fx import GraphModule

from qcompiler.quantization.training.batch_size import FixedBatchError, batch_uses, free_batch


def graph(module: nn.Module, batch: int, shape: tuple[int, ...] = (4, 6)) -> GraphModule:
    program = torch.export.export(module, (torch.zeros(batch, *shape),)).run_decompositions({})
    exported = program.module(check_guards=False)
    assert isinstance(exported, GraphModule)
    return exported


def freed(module: nn.Module) -> GraphModule:
    first = graph(module, 3)
    free_batch(first, batch_uses(first, graph(module, 4)))
    # A new module has no check that the input is of the exported shape.
    return GraphModule(first, first.graph)


def test_a_number_that_follows_the_batch_is_computed() -> None:
    # The 12 of [batch * 2, 12] is a multiple of 3 too, but not of the batch.
    module = Calls(lambda m, x: x.reshape(x.shape[0] * 2, 12) + torch.ones(x.shape[0] * 2, 1))
    x = torch.randn(7, 4, 6)
    assert torch.equal(freed(module)(x), module(x))


def test_what_does_not_depend_on_the_batch_stays() -> None:
    module = Calls(lambda m, x: torch.relu(x) + 3)
    first = graph(module, 3)
    before = [str(n) for n in first.graph.nodes]
    uses = batch_uses(first, graph(module, 4))
    free_batch(first, uses)
    assert uses == []
    assert [str(n) for n in first.graph.nodes] == before


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (Calls(lambda m, x: x * (x.shape[0] + 1)), "depends on the batch size: 4"),
        (Calls(lambda m, x: torch.relu(x) if x.shape[0] == 3 else x), "something else at another batch size"),
        (Calls(lambda m, x: torch.relu(x) if x.shape[0] == 3 else torch.tanh(x)), "tanh.default in the place of"),
    ],
)  # fmt: skip
def test_other_dependence_is_refused(module: nn.Module, reason: str) -> None:
    with pytest.raises(FixedBatchError, match=reason):
        freed(module)
