"""Which layers of a model lose accuracy when it is quantized, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from qcompiler import report
from qcompiler.config import CompileConfig
from qcompiler.driver.quantized import (
    Calibration,
    Model,
    batches_of,
    float_records,
    optimization_records,
    program_of,
)
from qcompiler.errors import QuantizationError
from qcompiler.frontend import capture
from qcompiler.quantization.analyze import LayerErrors, analyze_layers
from qcompiler.quantization.quantizer import calibrate
from qcompiler.quantization.simulation import spread
from qcompiler.runtime.manifest import FloatRecord, OptimizationRecord
from qcompiler.targets import registry

SAMPLES = 16
"""Samples that errors are measured on unless more are asked for: each is a mean over thousands of values a sample."""


@dataclass(frozen=True)
class Analysis:
    """What :func:`analyze` found.

    Attributes:
        target: name of the target whose rules were used.
        errors: of the model and of each layer.
        float_operators: operators that stay in float, with reasons.
        optimizations: what was tried to lower the error, as ``effort`` and its options ask.
    """

    target: str
    errors: LayerErrors
    float_operators: tuple[FloatRecord, ...]
    optimizations: tuple[OptimizationRecord, ...]


def analyze(
    model: Model,
    config: CompileConfig,
    *,
    calibration: Calibration,
    limit: int | None = None,
    example_inputs: tuple[torch.Tensor, ...] | None = None,
) -> Analysis:
    """Quantizes a model as ``compile`` would, and measures each layer in a simulation of it.

    Args:
        model: as of :func:`qcompiler.driver.compile.compile_model`, in float.
        config: the options of quantization.
        calibration: as of :func:`qcompiler.driver.compile.compile_model`.
        limit: samples to measure on, evenly spread over the calibration data; None for ``SAMPLES``.
        example_inputs: as of ``compile_model``.

    Raises:
        QuantizationError: the model is quantized already.
        QCompilerError: as of ``compile_model``.
    """
    target = registry.resolve(config.target)
    program = program_of(model, example_inputs, config)
    if capture.is_quantized(program):
        raise QuantizationError(
            "the model is quantized already, so there is nothing to compare it with; give the float model"
        )
    batches = batches_of(program, calibration)
    calibrated = calibrate(program, target.rules, batches, config)
    errors = analyze_layers(calibrated, spread(batches, limit or SAMPLES), config.progress)
    floats = float_records(calibrated.quantizer.float_operators)
    return Analysis(target.name, errors, floats, optimization_records(calibrated.effects))


def write_page(analysis: Analysis, title: str, path: Path) -> Path:
    """Writes an analysis as an HTML page with plots, which needs no other file; returns its path.

    Raises:
        ConfigError: matplotlib is not installed.
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.analysis_page(title, analysis.target, analysis.errors), encoding="utf-8")
    return path
