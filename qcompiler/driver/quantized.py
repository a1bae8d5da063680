"""Steps 1 and 2: from what the user gives to a program in PT2E form."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from qcompiler.config import CompileConfig
from qcompiler.errors import CalibrationError, ConfigError
from qcompiler.frontend import capture
from qcompiler.quantization import Effect, FloatOperator, Quantized, leave_float, quantize_measured, respell
from qcompiler.quantization import calibration as calibrations
from qcompiler.quantization.training import QATModule
from qcompiler.runtime.manifest import FloatRecord, OptimizationRecord
from qcompiler.targets.base import Target

log = logging.getLogger(__name__)

Model = torch.nn.Module | ExportedProgram | str | Path
Calibration = str | Path | Iterable[Any] | None


@dataclass(frozen=True, eq=False)
class QuantizedModel:
    """A model after step 2.

    Attributes:
        program: in PT2E form.
        float_operators: what quantization left in float, and why.
        optimizations: what was tried to lower the error of quantization.
    """

    program: ExportedProgram
    float_operators: tuple[FloatRecord, ...] = ()
    optimizations: tuple[OptimizationRecord, ...] = ()


def program_of(
    model: Model, example_inputs: tuple[torch.Tensor, ...] | None, config: CompileConfig
) -> ExportedProgram:
    if isinstance(model, str | Path):
        shapes = None
        if example_inputs is not None and str(model).endswith(".onnx"):
            shapes, example_inputs = [tuple(x.shape) for x in example_inputs], None
        if example_inputs is None:
            return capture.resolve(str(model), config.dims, shapes)
    elif config.dim:
        raise ConfigError("dim fixes the symbolic extents of ONNX files; other models have none")
    if isinstance(model, torch.nn.Module):
        if example_inputs is None:
            raise ConfigError(
                "a module needs example_inputs: a tuple of tensors of the shapes to compile for"
            )
        return capture.capture(model, example_inputs)
    if example_inputs is not None:
        raise ConfigError("example_inputs go with a module or an ONNX file; an exported program has its own")
    assert isinstance(model, ExportedProgram)
    return capture.check(model)


def quantized_program(
    program: ExportedProgram, target: Target, config: CompileConfig, calibration: Calibration
) -> QuantizedModel:
    """Step 2: the program in PT2E form, what stays in float, and what the optimizations gained."""
    if capture.is_quantized(program):
        refuse_quantization(config, "the model")
        if config.precision != "int8":
            raise ConfigError(
                f"precision {config.precision}: the model is quantized already; give the float model, or leave "
                "precision at int8"
            )
        if config.plan is not None:
            raise ConfigError(
                f"plan {config.plan}: the model is quantized already, and its own quantize nodes say what is int8; "
                "give the float model, or no plan"
            )
        if calibration is not None:
            log.warning(
                "the model is quantized already; its own scales are kept and calibration data is not used"
            )
        return QuantizedModel(respell(program))
    if not config.quantizes:
        if calibration is not None:
            log.warning("no layer is int8; calibration data is not used")
        return _model(leave_float(program, config))
    return _model(quantize_measured(program, target.rules, batches_of(program, calibration), config))


def refuse_quantization(config: CompileConfig, what: str) -> None:
    """Refuses options of quantization for what is quantized already.

    Raises:
        ConfigError: an option is not its default.
    """
    for name, value in config.quantization.items():
        raise ConfigError(
            f"{name} is {value!r}, and {what} is quantized already, by its own options; give the float model, or leave "
            f"{name} out"
        )


def _model(quantized: Quantized) -> QuantizedModel:
    return QuantizedModel(
        quantized.program,
        float_records(quantized.float_operators),
        optimization_records(quantized.effects),
    )


def float_records(operators: Iterable[FloatOperator]) -> tuple[FloatRecord, ...]:
    """What quantization left in float, as manifests and results have it."""
    return tuple(FloatRecord(f.operator, f.place, f.reason) for f in operators)


def trained_program(
    model: QATModule,
    example_inputs: tuple[torch.Tensor, ...] | None,
    target: Target,
    config: CompileConfig,
    calibration: Calibration,
) -> QuantizedModel:
    """The quantized program of a module that :func:`qcompiler.prepare_qat` made."""
    if example_inputs is None:
        raise ConfigError("a module needs example_inputs: a tuple of tensors of the shapes to compile for")
    if model.rules != target.rules:
        raise ConfigError(
            f"the module was prepared by the rules of another target than {target.name}, and trained for their "
            f"arithmetic; prepare it for {target.name}"
        )
    if config.plan is not None or config.gate:
        raise ConfigError(
            "a trained module is compiled as it was trained, so plan and gate come too late; give the plan to prepare_qat"
        )
    refuse_quantization(config, "the module")
    if config.precision != "int8":
        raise ConfigError(
            f"precision {config.precision}: the module was trained for int8; give the float model, or leave precision out"
        )
    if calibration is not None:
        log.warning("the module was trained with its own ranges; calibration data is not used")
    program = capture.check(model.program(example_inputs))
    return QuantizedModel(program, float_records(model.float_operators))


def batches_of(program: ExportedProgram, calibration: Calibration) -> list[calibrations.Batch]:
    """Calibration data as checked batches of the program's own shapes.

    Raises:
        CalibrationError: there is none, or it does not fit the program.
    """
    if calibration is None:
        raise CalibrationError(
            "calibration data is missing: give an .npz file with an array an input, or an iterable of batches; "
            "precision fp32, bf16 and fp16 need none"
        )
    inputs = capture.user_inputs(program)
    if isinstance(calibration, str | Path):
        return calibrations.load_npz(calibration, inputs)
    return calibrations.from_iterable(calibration, inputs)


def optimization_records(effects: Iterable[Effect]) -> tuple[OptimizationRecord, ...]:
    """Effects as manifests and results have them; outputs without noise have no ratio in JSON."""

    def record(effect: Effect) -> OptimizationRecord:
        before, after = (db if math.isfinite(db) else None for db in (effect.before_db, effect.after_db))
        return OptimizationRecord(effect.name, before, after, effect.kept, effect.changed, effect.refused)

    return tuple(map(record, effects))
