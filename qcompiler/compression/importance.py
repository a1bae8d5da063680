"""How much a channel matters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from qcompiler.errors import CompressionError

Importance = Literal["l1", "batch-norm", "taylor"]


@dataclass(frozen=True)
class Slice:
    """A dimension of a parameter along which a family of channels lies.

    Attributes:
        name: the parameter's name.
        dimension: the dimension.
        positions: for each channel of the family, its positions in it.
    """

    name: str
    dimension: int
    positions: tuple[tuple[int, ...], ...]


def scores(
    kind: Importance,
    slices: Iterable[Slice],
    parameters: Mapping[str, torch.Tensor],
    norms: frozenset[str],
) -> torch.Tensor | None:
    """The importance of each channel of a family, float64; larger is more important.

    - ``l1``: mean magnitude of the weights that compute the channel, divided by the family's mean; of several layers
      that compute it, the mean.
    - ``batch-norm``: magnitude of the batch norm's weight, likewise (Liu et al. 2017).
    - ``taylor``: ``sum over the channel's parameters of (gradient * value) ** 2``, each summed over the channel first
      (Molchanov et al. 2019).

    Args:
        kind: which of these.
        slices: where the family's channels are.
        parameters: values by name, with gradients for ``taylor``.
        norms: names of the weights of batch norms.

    Returns:
        None where the family has nothing of the kind that is asked for.

    Raises:
        CompressionError: a gradient is missing.
    """
    found = []
    for part in slices:
        value = parameters.get(part.name)
        if value is None or part.dimension != 0 or not _counts(kind, part.name, value, norms):
            continue
        rows = _rows(value, part) if kind != "taylor" else _first_order(value, part)
        found.append(rows if kind == "taylor" else rows / rows.mean().clamp(min=1e-30))
    if not found:
        return None
    total = torch.stack(found)
    return total.sum(0) if kind == "taylor" else total.mean(0)


def _counts(kind: Importance, name: str, value: torch.Tensor, norms: frozenset[str]) -> bool:
    wanted: dict[str, Callable[[], bool]] = {
        "l1": lambda: value.ndim > 1,
        "batch-norm": lambda: name in norms,
        "taylor": lambda: True,
    }
    return wanted[kind]()


def _rows(value: torch.Tensor, part: Slice) -> torch.Tensor:
    magnitudes = (
        value.detach().double().abs().flatten(1).mean(1) if value.ndim > 1 else value.detach().double().abs()
    )
    return torch.stack([magnitudes[list(p)].mean() for p in part.positions])


def _first_order(value: torch.Tensor, part: Slice) -> torch.Tensor:
    if value.grad is None:
        raise CompressionError(
            f"{part.name} has no gradient, by which 'taylor' tells what matters; call backward() on the loss of some "
            "batches before pruning, and do not zero the gradients"
        )
    products = (value.detach().double() * value.grad.double()).flatten(1 if value.ndim > 1 else 0)
    sums = products.sum(1) if value.ndim > 1 else products
    return torch.stack([sums[list(p)].sum().square() for p in part.positions])
