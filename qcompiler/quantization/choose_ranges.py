"""The best range of each tensor, by the error that it causes where the tensor is read."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import torch
from torch.fx import Node

from qcompiler.quantization.observers import AutoObserver
from qcompiler.quantization.ranges import Range
from qcompiler.quantization.simulation import Simulation, Values, spread

SAMPLES = 32
"""Calibration samples that candidates are measured on: the error is a mean over thousands of values a sample."""

log = logging.getLogger(__name__)


def choose_ranges(simulation: Simulation, batches: Sequence[tuple[torch.Tensor, ...]]) -> Counter[str]:
    """Choose a method for each :class:`AutoObserver` of the graph.

    Each candidate range is applied alone, all other quantizers being off. Its error is the squared error that it causes
    where the next quantizers are, or in the model's outputs, relative to the squares of the values there: what a
    clipped or rounded value costs depends on the weights that it meets. The cost is one run of the model a candidate,
    since each operator is computed for the tensors before it only.

    Args:
        simulation: the graph.
        batches: calibration inputs.

    Returns:
        How many tensors have each method.
    """
    groups = _groups(simulation)
    errors = {observer: dict.fromkeys(observer.candidates(), 0.0) for observer in groups}
    for batch in spread(batches, SAMPLES):
        values = simulation.run(batch, ())
        for observer, quantizers in groups.items():
            nodes, ends = _reach(simulation, quantizers)
            known: dict[Range, float] = {}
            for method, limits in observer.candidates().items():
                if limits not in known:
                    known[limits] = _error(simulation, observer, method, (quantizers, nodes, ends), values)
                errors[observer][method] += known[limits]
    chosen: Counter[str] = Counter()
    for observer, found in errors.items():
        # Of equal ones the first: it clips least.
        observer.choose(min(found, key=found.__getitem__))
        chosen[observer.choice] += 1
    log.info("calibration methods chosen: %s", ", ".join(f"{m} {n}" for m, n in chosen.most_common()))
    return chosen


def _groups(simulation: Simulation) -> dict[AutoObserver, list[Node]]:
    groups: dict[AutoObserver, list[Node]] = {}
    for node, observer in simulation.observers.items():
        if isinstance(observer, AutoObserver):
            groups.setdefault(observer, []).append(node)
    return groups


def _reach(simulation: Simulation, quantizers: list[Node]) -> tuple[list[Node], list[Node]]:
    """What the tensors of quantizers change up to the next quantizers or the output, and where that is read."""
    others = simulation.quantizers - set(quantizers)
    nodes = simulation.downstream(quantizers, stops=others | {simulation.output})
    ends = [n for n in nodes if n in others or n is simulation.output]
    return nodes, ends


def _error(
    simulation: Simulation,
    observer: AutoObserver,
    method: str,
    reach: tuple[list[Node], list[Node], list[Node]],
    values: Values,
) -> float:
    quantizers, nodes, ends = reach
    observer.choose(method)
    found = simulation.update(dict(values), nodes, quantizers)
    error = 0.0
    for end in ends:
        for before, after in zip(_tensors(values[end]), _tensors(found[end]), strict=True):
            signal = float(before.double().square().sum())
            noise = float((after - before).double().square().sum())
            error += noise / signal if signal else noise
    return error


def _tensors(value: object) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(value)
    return [v for v in leaves if isinstance(v, torch.Tensor) and v.is_floating_point()]
