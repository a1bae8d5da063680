"""Which optimizations are tried, in which order, and which are kept: those that lower the error of the outputs."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch.fx import GraphModule

from qcompiler.config import CompileConfig
from qcompiler.quantization.batch_norms import attribute
from qcompiler.quantization.observers import AutoObserver
from qcompiler.quantization.optimize.bias import correct_biases, correct_biases_fast
from qcompiler.quantization.optimize.effects import Batch, Change, Effect, Judge, divide
from qcompiler.quantization.optimize.equalize import equalize, smooth
from qcompiler.quantization.optimize.rounding import round_adaptively
from qcompiler.quantization.simulation import Simulation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A calibrated graph on the way to the best one.

    Attributes:
        simulation: of the graph.
        sqnr_db: of its outputs, on held-out samples.
    """

    simulation: Simulation
    sqnr_db: float


def optimize(
    model: GraphModule,
    batches: Sequence[Batch],
    config: CompileConfig,
    prepare: Callable[[GraphModule], Simulation],
    refit: Callable[[Simulation], None],
) -> tuple[Simulation, list[Effect]]:
    """The best calibrated graph of a float model that the configuration's methods give.

    Each method is measured beside the graph without it, on calibration samples that it was not fitted to, and undone if
    the outputs get worse.

    Args:
        model: the canonical float graph, its batch norms folded; it is used up.
        batches: calibration inputs.
        config: says which methods.
        prepare: gives the calibrated graph of a float graph, which is used up.
        refit: makes the weights' scales of a graph large enough for its biases.
    """
    methods = config.methods
    before = [(name, change) for name, change, wanted in (
        ("equalize", equalize, methods.equalize), ("smooth", smooth, methods.smooth),
    ) if wanted]  # fmt: skip
    after: list[tuple[str, Callable[[Simulation, list[Batch]], Change]]] = []
    if methods.adaptive_rounding:
        after.append(("adaptive_rounding", round_adaptively))
    if methods.bias_correction == "empirical":
        after.append(("bias_correction empirical", correct_biases))
    if methods.bias_correction == "fast":
        after.append(("bias_correction fast", correct_biases_fast))
    if not before and not after and methods.calibration_method != "auto":
        return prepare(model), []

    fitted, held_out = divide(batches)
    judge = Judge(held_out)
    effects: list[Effect] = []
    judge.learn(Simulation(model))
    best = _judged(prepare(copy.deepcopy(model)), judge, config, effects)
    for name, change in before:
        changed = copy.deepcopy(model)
        done = change(changed, fitted)
        candidate = best
        if done.changed:
            candidate = _judged(prepare(copy.deepcopy(changed)), judge, config, [])
        kept = candidate.sqnr_db > best.sqnr_db
        effects.append(_effect(name, best.sqnr_db, candidate.sqnr_db, kept, done))
        if kept:
            model, best = changed, candidate
    for name, fit in after:
        best = _in_place(name, fit, best, fitted, judge, refit, effects)
    for effect in effects:
        log.info(
            "%s: %.2f dB -> %.2f dB%s",
            effect.name,
            effect.before_db,
            effect.after_db,
            "" if effect.kept else ", undone",
        )
    return best.simulation, effects


def _judged(simulation: Simulation, judge: Judge, config: CompileConfig, effects: list[Effect]) -> Prepared:
    """A graph with its score; of ``auto`` ranges the chosen ones, unless the plain extremes are better."""
    score = judge.sqnr(simulation)
    observers = {o for o in simulation.observers.values() if isinstance(o, AutoObserver)}
    if config.methods.calibration_method != "auto":
        return Prepared(simulation, score)
    choices = {observer: observer.choice for observer in observers}
    for observer in observers:
        observer.choose("minmax")
    plain = judge.sqnr(simulation)
    kept = score >= plain
    if kept:
        for observer, choice in choices.items():
            observer.choose(choice)
    changed = sum(choice != "minmax" for choice in choices.values())
    effects.append(_effect("calibration_method auto", plain, score, kept, Change(changed)))
    return Prepared(simulation, max(score, plain))


def _in_place(
    name: str,
    fit: Callable[[Simulation, list[Batch]], Change],
    best: Prepared,
    batches: list[Batch],
    judge: Judge,
    refit: Callable[[Simulation], None],
    effects: list[Effect],
) -> Prepared:
    """Change a graph's weights and biases, and put them back if that does not help."""
    graph = best.simulation.prepared
    saved = {name: tensor.clone() for name, tensor in _constants(graph).items()}
    done = fit(best.simulation, batches)
    # Nodes may have been added, and the constants' rounded values are old.
    changed = Simulation(graph)
    refit(changed)
    score = judge.sqnr(changed)
    kept = score > best.sqnr_db
    effects.append(_effect(name, best.sqnr_db, score, kept, done))
    if kept:
        return Prepared(changed, score)
    for name, tensor in _constants(graph).items():
        # A bias that was added stays as zeros, which change nothing.
        tensor.copy_(saved[name] if name in saved else torch.zeros_like(tensor))
    return Prepared(Simulation(graph), best.sqnr_db)


def _constants(graph: GraphModule) -> dict[str, torch.Tensor]:
    """Weights, biases and other tensors that a graph reads, parameters and buffers alike."""
    names = {str(n.target) for n in graph.graph.nodes if n.op == "get_attr"}
    return {name: attribute(graph, name) for name in names}


def _effect(name: str, before: float, after: float, kept: bool, change: Change) -> Effect:
    return Effect(name, before, after, kept, change.changed, change.summary())
