"""A quantized model as a file that compiles for every target."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from qcompiler.config import CompileConfig
from qcompiler.driver.quantized import Calibration, Model, program_of, quantized_program
from qcompiler.errors import QuantizationError
from qcompiler.frontend import capture
from qcompiler.runtime.manifest import FloatRecord, OptimizationRecord
from qcompiler.targets import registry


@dataclass(frozen=True)
class QuantizeResult:
    """What :func:`quantize_model` wrote.

    Attributes:
        path: the archive.
        float_operators: what quantization left in float, and why.
        optimizations: what was tried to lower the error of quantization, and what it gained.
    """

    path: Path
    float_operators: tuple[FloatRecord, ...]
    optimizations: tuple[OptimizationRecord, ...]


def quantize_model(
    model: Model,
    config: CompileConfig,
    *,
    calibration: Calibration,
    output: Path,
    example_inputs: tuple[torch.Tensor, ...] | None = None,
) -> QuantizeResult:
    """Quantizes a model and writes it as a ``.pt2`` archive with quantize and dequantize operators (PT2E form).

    ``compile`` takes the archive for any target, without calibration data, and every target's library gives the same
    bits. A process that is killed leaves at ``output`` what was there before.

    Args:
        model: as of :func:`~qcompiler.driver.compile.compile_model`, in float.
        config: the options of quantization; the target gives the rules.
        calibration: as of :func:`~qcompiler.driver.compile.compile_model`.
        output: the archive, whose name must end in ``.pt2``.
        example_inputs: tensors of the shapes and dtypes that the model is for, if it is a module.

    Raises:
        QuantizationError: the model is quantized already, or the archive cannot be written.
        QCompilerError: the model or the data cannot be used.
    """
    if output.suffix != ".pt2":
        raise QuantizationError(f"output {output} must end in .pt2, by which archives are known")
    program = program_of(model, example_inputs, config)
    if capture.is_quantized(program):
        raise QuantizationError("the model is quantized already; compile it as it is")
    target = registry.resolve(config.target)
    quantized = quantized_program(program, target, config, calibration)
    partial = output.with_name(f".{output.stem}.partial-{os.getpid()}.pt2")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.export.save(quantized.program, partial)
            partial.replace(output)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise QuantizationError(f"output {output} cannot be written: {error}") from error
    return QuantizeResult(output, quantized.float_operators, quantized.optimizations)
