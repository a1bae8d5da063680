"""Channels of a tensor get ranges alike, so that one scale for all of them wastes little.

The layer before the tensor divides a channel by a factor, the layers behind it multiply by the same, and the function
stays what it was (Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019; Xiao et
al., "SmoothQuant", 2023). The factor of a channel is ``range ** a / weight ** (1 - a)``: the larger its range in the
tensor, the more is moved into the weights that read it; the larger these are beside the others of their row, the less.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule, Node

from qcompiler.quantization.batch_norms import NORMAL, Normal
from qcompiler.quantization.operator_classes import aten, shape_of
from qcompiler.quantization.optimize.channels import (
    Chain,
    NoChain,
    consumer_columns,
    find_chains,
    scale_chain,
)
from qcompiler.quantization.optimize.effects import Batch, Change
from qcompiler.quantization.simulation import Simulation

_SHARED = 0.5
"""Share of a channel's range that is moved into weights with one scale a row: half, as both papers have it."""

_OWN = 1.0
"""The same where a row reads one channel only (depthwise): its scale follows, so all of it can be moved for nothing."""

_FLOOR = 0.01
"""Range that a channel is taken to have at least, beside the median channel: what is silent on the calibration data may
speak elsewhere, and must not be cut off."""

_SMALLEST_WEIGHT = 1e-6
"""Weight beside the largest of its row below which it does not count."""

EQUALIZED = frozenset({aten.conv2d.default, aten.linear.default})
SMOOTHED = frozenset({aten.layer_norm.default})


def equalize(model: GraphModule, batches: Sequence[Batch]) -> Change:
    """Cross-layer equalization between convolutions and linear layers, in place.

    Through a clamp with an upper bound (relu6) a channel may be scaled only if it stays below the bound on the
    calibration data, and so far that it still does.
    """
    return _migrate(model, batches, EQUALIZED)


def smooth(model: GraphModule, batches: Sequence[Batch]) -> Change:
    """SmoothQuant: ranges move from the tensors that linear layers read into their weights, in place.

    The layer norm before them takes the division. Where something else stands there, they are left alone: a
    multiplication of its own would cost time at each run.
    """
    change = _migrate(model, batches, SMOOTHED)
    chains = [c for c in find_chains(model, SMOOTHED) if isinstance(c, Chain)]
    behind_norms = {consumer.node for chain in chains for consumer in chain.consumers}
    others = [
        n for n in model.graph.nodes
        if n.target is aten.linear.default and n not in behind_norms
        and n.args[0].target not in SMOOTHED | EQUALIZED | {aten.relu.default}
    ]  # fmt: skip
    reasons = [f"no layer norm stands before the linear layer, but {_origin(n)}" for n in others]
    return Change(change.changed, (*change.refused, *reasons))


def _origin(linear: Node) -> str:
    source = linear.args[0]
    assert isinstance(source, Node), linear
    return "an input of the model" if source.op == "placeholder" else str(source.target).split(".")[1]


def _migrate(model: GraphModule, batches: Sequence[Batch], producers: frozenset[object]) -> Change:
    found = list(find_chains(model, producers))
    chains = [c for c in found if isinstance(c, Chain)]
    refused = [c.reason for c in found if isinstance(c, NoChain)]
    largest = _largest(model, chains, batches)
    changed = 0
    for chain in chains:
        factors = _factors(model, chain, largest[chain.tensor])
        if isinstance(factors, NoChain):
            refused.append(factors.reason)
            continue
        scale_chain(model, chain, factors)
        normal = chain.producer.node.meta.get(NORMAL)
        if normal is not None:
            chain.producer.node.meta[NORMAL] = Normal(normal.mean / factors, normal.deviation / factors)
        changed += 1
    return Change(changed, tuple(refused))


def _largest(
    model: GraphModule, chains: Sequence[Chain], batches: Sequence[Batch]
) -> dict[Node, torch.Tensor]:
    """The largest magnitude of each channel of the chains' tensors, float64, one a channel of the producer."""
    simulation = Simulation(model)
    found: dict[Node, torch.Tensor] = {}
    for batch in batches:
        values = simulation.run(batch, ())
        for chain in chains:
            value = values[chain.tensor]
            assert isinstance(value, torch.Tensor), chain
            others = [d for d in range(value.dim()) if d != chain.axis]
            channels = value.abs().double().amax(dim=others).reshape(-1, chain.repeat).amax(dim=1)
            found[chain.tensor] = torch.maximum(found.get(chain.tensor, channels), channels)
    return found


def _factors(model: GraphModule, chain: Chain, largest: torch.Tensor) -> torch.Tensor | NoChain:
    """The factor of each channel, such that the tensor's range stays what it is; or why there is none."""
    free = torch.ones_like(largest, dtype=torch.bool)
    if chain.bound is not None:
        free = largest < chain.bound
        if not bool(free.any()):
            return NoChain(
                f"all {len(free)} channels reach the clamp's bound of {chain.bound:g} on the calibration data"
            )
    median = float(largest[largest > 0].median()) if bool((largest > 0).any()) else 0.0
    if not median:
        return NoChain("the tensor is always zero on the calibration data")
    ranges = largest.clamp(min=_FLOOR * median)
    own = all(shape_of(consumer.weight)[1] == 1 for consumer in chain.consumers)
    share = _OWN if own else _SHARED
    columns = torch.stack([consumer_columns(model, chain, c) for c in chain.consumers]).amax(dim=0)
    factors = ranges**share / columns.clamp(min=_SMALLEST_WEIGHT) ** (1.0 - share)
    # The largest channel keeps its range, so that every other stays below a clamp's bound, too.
    factors = factors * ((ranges / factors).max() / ranges.max())
    return torch.where(free, factors, torch.ones_like(factors))
