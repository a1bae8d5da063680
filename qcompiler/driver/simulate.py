"""The compiled library's arithmetic as a PyTorch module: accuracy to the bit, without compiling, for any chip."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from qcompiler import reference
from qcompiler.config import CompileConfig
from qcompiler.driver.compile import IntegerModel, integer_model
from qcompiler.driver.quantized import Calibration, Model, program_of, quantized_program, trained_program
from qcompiler.errors import ConfigError, InputError
from qcompiler.passes import pipeline
from qcompiler.passes.graph import bindings, op_name
from qcompiler.quantization.training import QATModule
from qcompiler.runtime.inputs import order_inputs, to_array
from qcompiler.runtime.manifest import FloatRecord, TensorSpec
from qcompiler.targets import registry


class IntegerModule(nn.Module):
    """Computes what the compiled library computes, in NumPy; it has no parameters and no gradient.

    Attributes:
        inputs: names, shapes and dtypes of the inputs.
        outputs: those of the outputs.
        float_operators: what is left in float, and why. Outputs that depend on none of it have the library's bits;
            others may differ from it in a float's last digit, and behind a rounding by a step.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    float_operators: tuple[FloatRecord, ...]

    def __init__(self, model: IntegerModel) -> None:
        super().__init__()
        self.inputs, self.outputs = model.inputs, model.outputs
        self.float_operators = model.float_operators
        self._interpreter = reference.Interpreter(model.module)

    def forward(self, *inputs: Any) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The outputs: a tensor, or a tuple if there are several.

        Args:
            inputs: one tensor an input, or one mapping by name. Inputs may hold several of the model's batches along
                the first axis; they are run one after the other.

        Raises:
            InputError: shapes or dtypes are not the model's, or the first axis holds no whole number of batches.
        """
        tensors = [torch.as_tensor(x).detach().cpu() for x in order_inputs(self.inputs, inputs)]
        runs = [self._run(part) for part in self._batches(tensors)]
        columns = zip(*runs, strict=True)
        outputs = tuple(torch.from_numpy(c[0] if len(c) == 1 else np.concatenate(c)) for c in columns)
        return outputs[0] if len(outputs) == 1 else outputs

    def _batches(self, tensors: list[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
        if all(tuple(x.shape) == spec.shape for x, spec in zip(tensors, self.inputs, strict=True)):
            return [tuple(tensors)]
        counts = set()
        for x, spec in zip(tensors, self.inputs, strict=True):
            if not spec.shape or x.shape[1:] != spec.shape[1:] or x.shape[0] % spec.shape[0] or not len(x):
                raise InputError(
                    f"input {spec.name!r} has shape {tuple(x.shape)}; expected {spec.shape}, or a multiple of it along the first axis"
                )
            counts.add(len(x) // spec.shape[0])
        batched = all(spec.shape and spec.shape[0] == self.inputs[0].shape[0] for spec in self.outputs)
        if len(counts) != 1 or not batched:
            shapes = ", ".join(str(spec.shape) for spec in self.inputs)
            raise InputError(
                f"this model runs on inputs of exactly {shapes}: its tensors have no common batch axis"
            )
        return list(
            zip(*(torch.split(x, s.shape[0]) for x, s in zip(tensors, self.inputs, strict=True)), strict=True)
        )

    def _run(self, tensors: tuple[torch.Tensor, ...]) -> list[np.ndarray[Any, Any]]:
        arrays = [to_array(spec, x) for spec, x in zip(self.inputs, tensors, strict=True)]
        return [value.array for value in self._interpreter.run(arrays)]


def simulate(
    model: Model,
    config: CompileConfig,
    *,
    calibration: Calibration,
    example_inputs: tuple[torch.Tensor, ...] | None,
) -> IntegerModule:
    """A module that computes what :func:`~qcompiler.driver.compile.compile_model` would compile.

    Raises:
        ConfigError: the options ask for measurements on the target.
        QCompilerError: as of ``compile_model``.
    """
    if config.gate:
        raise ConfigError("gate measures layers on the target; simulate takes a plan instead")
    target = registry.resolve(config.target)
    if config.weights_only or config.precision not in ("int8", "fp32"):
        raise ConfigError(
            "simulate computes int8 and fp32 layers; layers in bf16 and fp16 and weights_only round as each chip does: compile "
            "the model, and run it"
        )
    if isinstance(model, QATModule):
        quantized = trained_program(model, example_inputs, target, config, calibration)
    else:
        program = program_of(model, example_inputs, config)
        quantized = quantized_program(program, target, config, calibration)
    model_in_integers = integer_model(quantized, config, pipeline.Dump(config.dump_ir))
    if any(op_name(b.value) == "qc.round_float" for b in bindings(model_in_integers.module)):
        raise ConfigError(
            "a layer's precision is bf16 or fp16, which each chip rounds in its own way: compile the model, and run it"
        )
    return IntegerModule(model_in_integers)
