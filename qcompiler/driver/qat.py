"""Prepares a model for quantization-aware training: captures it, and puts fake quantization into it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.export import ExportedProgram

from qcompiler.config import EFFORTS, CompileConfig
from qcompiler.driver.quantized import Calibration, Model, batches_of, program_of
from qcompiler.errors import ConfigError
from qcompiler.frontend import capture
from qcompiler.quantization.training import QATModule, prepare_training
from qcompiler.targets import registry


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
    if len({x.shape[:1] for x in example_inputs}) != 1 or not example_inputs[0].ndim:
        return None
    return capture.capture(model, tuple(torch.cat([x, x[:1]]) for x in example_inputs))
