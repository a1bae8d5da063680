"""Prepares a model for quantization-aware training: captures it, and puts fake quantization into it."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch.export import ExportedProgram

from qcompiler.config import EFFORTS, CompileConfig
from qcompiler.driver.quantized import Calibration, Model, batches_of, program_of
from qcompiler.errors import ConfigError, FrontendError
from qcompiler.frontend import capture
from qcompiler.frontend.randomness import dropouts, random_modules
from qcompiler.quantization.training import QATModule, prepare_training
from qcompiler.targets import registry

log = logging.getLogger(__name__)

_NAMED = 8
"""Random modules that a warning names."""


def prepare_qat(
    model: Model,
    config: CompileConfig,
    *,
    example_inputs: tuple[torch.Tensor, ...] | None,
    calibration: Calibration,
    learned_scales: bool,
) -> QATModule:
    """A module that trains what the target of ``config`` will run; see :func:`qcompiler.prepare_qat`.

    Raises:
        QCompilerError: the class says what kind of fault, the message what to do.
    """
    if replace(config.methods, calibration_method="minmax") != EFFORTS["fast"]:
        raise ConfigError(
            "effort and its optimizations are for quantization after training; training takes their place: leave them out"
        )
    if config.methods.calibration_method == "auto":
        raise ConfigError(
            "calibration_method 'auto' compares networks that are not trained; prepare_qat takes the others: minmax, "
            "moving-average, percentile, mse, entropy"
        )
    target = registry.resolve(config.target)
    program = program_of(model, example_inputs, config)
    _tell_randomness(model, example_inputs, program)
    batches = None if calibration is None else batches_of(program, calibration)
    return prepare_training(
        program,
        target.rules,
        config,
        other=_at_another_batch_size(model, example_inputs),
        batches=batches,
        learned_scales=learned_scales,
    )


def _at_another_batch_size(
    model: Model, example_inputs: tuple[torch.Tensor, ...] | None
) -> ExportedProgram | None:
    """The program of a module for one sample more; None if what is given has one size, or none."""
    if not isinstance(model, torch.nn.Module) or example_inputs is None:
        return None
    more = _one_sample_more(example_inputs)
    return None if more is None else capture.capture(model, more)


def _one_sample_more(inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...] | None:
    """The inputs with the first sample once more; None if they have no axis of samples."""
    if len({x.shape[:1] for x in inputs}) != 1 or not inputs[0].ndim:
        return None
    return tuple(torch.cat([x, x[:1]]) for x in inputs)


def _tell_randomness(
    model: Model, example_inputs: tuple[torch.Tensor, ...] | None, program: ExportedProgram
) -> None:
    """Warns of what the model does at random in training, which the graph of inference has not."""
    if isinstance(model, torch.nn.Module) and example_inputs is not None:
        try:
            places = random_modules(model, _one_sample_more(example_inputs) or example_inputs)
        except FrontendError as error:
            log.warning(
                "%s; if it has dropout or stochastic depth, the prepared module trains without them", error
            )
            return
    else:
        places = dropouts(program)
    if places:
        more = f" and {len(places) - _NAMED} more" if len(places) > _NAMED else ""
        log.warning(
            "the prepared module trains without dropout, stochastic depth and noise, because its graph is that of "
            "inference; off are: %s%s. If it fits the training data too closely, regularize it otherwise, as by weight "
            "decay or augmentation",
            ", ".join(places[:_NAMED]),
            more,
        )
