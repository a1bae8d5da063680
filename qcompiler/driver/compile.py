"""The pipeline: the only file that calls the steps, one after the other."""

from __future__ import annotations

import json
import logging
import platform
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tvm
import tvm_ffi
from torch.export import ExportedProgram
from tvm import relax

from qcompiler._version import __version__
from qcompiler.config import CompileConfig
from qcompiler.driver import bundle
from qcompiler.driver.float_operators import float_operators
from qcompiler.driver.gpu import build as gpu
from qcompiler.driver.kernels import has_half_floats, kernels
from qcompiler.driver.link import link_shared
from qcompiler.driver.machine_code.library import count_instructions, forms
from qcompiler.driver.quantized import (
    Calibration,
    Model,
    QuantizedModel,
    program_of,
    quantized_program,
    trained_program,
)
from qcompiler.driver.tuning.apply import TunedScheduler, open_logs
from qcompiler.driver.widened import describe_widened
from qcompiler.driver.zeros import zero_shares
from qcompiler.errors import BuildError, ConfigError
from qcompiler.frontend import capture
from qcompiler.frontend.decompose import unroll
from qcompiler.frontend.importer import import_program
from qcompiler.passes import pipeline
from qcompiler.passes.graph import MAIN, bindings, dims, dtype, op_name
from qcompiler.passes.lift_constants import LiftConstants
from qcompiler.passes.lower_integer import Layer
from qcompiler.quantization import (
    rounded_layers,
)
from qcompiler.quantization.plan import Plan
from qcompiler.quantization.training import QATModule
from qcompiler.reference import storage
from qcompiler.runtime.bundle import read_manifest
from qcompiler.runtime.manifest import (
    CONSTANTS_NAME,
    FloatRecord,
    LayerRecord,
    Manifest,
    OptimizationRecord,
    TargetNeeds,
    TensorSpec,
    Versions,
)
from qcompiler.targets import registry
from qcompiler.targets.base import GpuTarget, Target

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompileResult:
    """What a compilation made.

    Attributes:
        bundle: the bundle's folder.
        manifest: what the bundle says of itself.
    """

    bundle: Path
    manifest: Manifest


@dataclass(frozen=True)
class Built:
    """A bundle, and where its kernels come from.

    Attributes:
        result: the bundle.
        kernels: as of :class:`~qcompiler.passes.pipeline.Physical`.
    """

    result: CompileResult
    kernels: tuple[tuple[str, tuple[str, ...]], ...]


def compile_model(
    model: Model,
    config: CompileConfig,
    *,
    calibration: Calibration,
    output: str | Path,
    example_inputs: tuple[torch.Tensor, ...] | None = None,
) -> CompileResult:
    """Compiles a model into a bundle.

    Args:
        model: a module (with ``example_inputs``; one of ``prepare_qat`` is compiled as it was trained), an exported
            program, the path of a ``.pt2`` archive or of an ``.onnx`` file, or ``package.module:function`` that returns a module and its example inputs.
        config: the options.
        calibration: samples that show the ranges of activations: the path of an ``.npz`` file with an array an
            input, or an iterable of batches. Not needed for a model that is quantized already.
        output: the folder to write; a bundle that is there already is replaced.
        example_inputs: tensors of the shapes and dtypes that the library is for: of a module, or of an ONNX model,
            whose extents need not be fixed.

    Raises:
        QCompilerError: the class says what kind of fault, the message what to do.
    """
    target = registry.resolve(config.target)
    _check_precision(target, config)
    tvm_target = registry.to_tvm(target, cores=1)
    scheduler = TunedScheduler(open_logs(target, config), tvm_target)
    if isinstance(model, QATModule):
        trained = trained_program(model, example_inputs, target, config, calibration)
        return build(trained, target, tvm_target, scheduler, config, Path(output)).result
    program = program_of(model, example_inputs, config)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        if config.gate:
            from qcompiler.driver.search.gate import gated  # compiles, and so imports this file

            plan = Path(folder) / "plan.json"
            config, calibration = gated(program, target, scheduler, config, calibration, plan)
        quantized = quantized_program(program, target, config, calibration)
        return build(quantized, target, tvm_target, scheduler, config, Path(output)).result


def _check_precision(target: Target, config: CompileConfig) -> None:
    """Refuses 16-bit floats where the target has no kernels for them."""
    planned = Plan.load(config.plan).precisions if config.plan is not None else ()
    asked = {config.precision, *config.layer_precision.values(), *planned}
    wanted: list[str] = sorted(asked & {"bf16", "fp16"})
    wanted += ["weights_only"] if config.weights_only else []
    if wanted and not has_half_floats(target):
        raise ConfigError(
            f"{wanted[0]}: target {target.name} has no kernels for it; allowed: precision int8 and fp32"
        )


def build(
    quantized: QuantizedModel,
    target: Target,
    tvm_target: tvm.target.Target,
    scheduler: TunedScheduler,
    config: CompileConfig,
    output: Path,
) -> Built:
    """A program in PT2E form as a bundle: steps 3 to 7."""
    dump = pipeline.Dump(config.dump_ir)
    model = integer_model(quantized, config, dump)
    return build_integer(model, target, tvm_target, scheduler, config, output, dump)


@dataclass(frozen=True, eq=False)
class IntegerModel:
    """A model after the phase *integer*, which is the same for every target.

    Attributes:
        module: Relax module with ``qc.*`` operators.
        inputs: its inputs by the user's names.
        outputs: its outputs.
        float_operators: what stayed in float, and why.
        optimizations: what was tried to lower the error of quantization.
    """

    module: tvm.IRModule
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    float_operators: tuple[FloatRecord, ...]
    optimizations: tuple[OptimizationRecord, ...] = ()


def integer_model(quantized: QuantizedModel, config: CompileConfig, dump: pipeline.Dump) -> IntegerModel:
    """A program in PT2E form in integers: steps 3 and 4."""
    program = unroll(quantized.program)
    module = import_program(program, rounded_layers(program.graph.nodes, config))
    integer = pipeline.to_integer(module, dump)
    return IntegerModel(
        integer.module,
        _inputs(program, integer.module),
        _outputs(program, integer.module),
        float_operators(integer.module, integer.notes, list(quantized.float_operators)),
        quantized.optimizations,
    )


def build_integer(
    model: IntegerModel,
    target: Target,
    tvm_target: tvm.target.Target,
    scheduler: TunedScheduler,
    config: CompileConfig,
    output: Path,
    dump: pipeline.Dump,
) -> Built:
    """An integer model as a bundle for a target: steps 5 to 7."""
    physical = pipeline.to_physical(
        model.module, target, tvm_target, dump=dump, scheduler=scheduler, **kernels(target)
    )
    machine = pipeline.to_machine(physical.module, tvm_target, dump)
    zeros = zero_shares(model.module)
    lift = LiftConstants()
    machine = lift(machine)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        library = Path(folder) / "model.so"
        counts = _code(machine, target, tvm_target, library, physical.layers)
        manifest = Manifest(
            inputs=model.inputs,
            outputs=model.outputs,
            target=json.loads(json.dumps(asdict(target), default=_jsonable)),
            constants=bundle.constant_specs(lift.constants),
            versions=Versions(
                __version__,
                tvm.__version__,
                tvm_ffi.__version__,
                torch.__version__,
                platform.python_version(),
            ),
            layers=tuple(_record(layer, counts, zeros.get(layer.name)) for layer in physical.layers),
            tuned_threads=tuple(sorted(scheduler.threads)),
            float_operators=model.float_operators,
            optimizations=model.optimizations,
            alternatives=tuple(
                TargetNeeds(t.name, t.required_features)
                for t in registry.known()
                if t.family == target.family and t.required_features
            ),
        )
        extra: dict[str, Path | bytes] = {}
        if lift.constants:
            extra[CONSTANTS_NAME] = bundle.constants_bytes(lift.constants)
        if config.embed_reference:
            reference = Path(folder) / bundle.REFERENCE_NAME
            storage.save(model.module, reference)
            extra[bundle.REFERENCE_NAME] = reference
        written = bundle.write(output, library, manifest, extra)
    for record in manifest.float_operators:
        log.info("%s at %s stays in float: %s", record.operator, record.place, record.reason)
    widened = describe_widened(manifest.layers)
    if widened is not None:
        log.warning("%s", widened)
    return Built(CompileResult(written, read_manifest(written)), physical.kernels)


def _jsonable(value: Any) -> Any:
    if isinstance(value, frozenset):
        return sorted(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _code(
    module: tvm.IRModule,
    target: Target,
    tvm_target: tvm.target.Target,
    library: Path,
    layers: list[Layer],
) -> dict[str, Counter[str]]:
    """Writes the library; how often each instruction stands in each of its kernels."""
    try:
        if isinstance(target, GpuTarget):
            return gpu.build_module(module, target, tvm_target, library, layers)
        executable = relax.build(module, tvm_target, relax_pipeline=None)
        executable.export_library(str(library), fcompile=link_shared)
        return count_instructions(library)
    except (RuntimeError, ValueError, TypeError) as error:  # what TVM's code generation raises
        fault = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise BuildError(f"code generation failed: {fault}; report this as a bug") from error


def _record(layer: Layer, counts: dict[str, Any], zeros: float | None) -> LayerRecord:
    """A layer's certificate: its accumulator's bound, and its instruction counted in the library."""
    found = counts.get(layer.kernel, {})
    count = sum(found.get(form, 0) for form in forms(layer.instruction)) if layer.instruction else 0
    if layer.instruction and not count:
        raise BuildError(
            f"layer {layer.name} was to use {layer.instruction}, and its kernel {layer.kernel} has none; "
            "report this as a bug"
        )
    return LayerRecord(
        name=layer.name, operator=layer.operator, dtype=layer.dtype, output_shape=layer.shape, macs=layer.macs,
        accumulator_bound=layer.accumulator_bound, instruction=layer.instruction, instruction_count=count,
        reason=layer.reason, function=layer.kernel, schedule=layer.schedule, arithmetic=layer.arithmetic, zero_weights=zeros,
    )  # fmt: skip


def _inputs(program: ExportedProgram, module: tvm.IRModule) -> tuple[TensorSpec, ...]:
    """The inputs by the user's names; an input that is quantized at once tells its scale and zero point."""
    specs = []
    for info, param in zip(capture.user_inputs(program), module[MAIN].params, strict=True):
        scale = zero_point = None
        for binding in bindings(module):
            if op_name(binding.value) == "qc.quantize" and binding.value.args[0].same_as(param):
                scale = 1.0 / float(binding.value.attrs["inv_scale"])
                zero_point = int(binding.value.attrs["zero_point"])
        specs.append(TensorSpec(info.name, dims(param), dtype(param), scale, zero_point))
    return tuple(specs)


def _outputs(program: ExportedProgram, module: tvm.IRModule) -> tuple[TensorSpec, ...]:
    types = module[MAIN].ret_ty
    fields = types.fields if isinstance(types, relax.TupleType) else [types]
    names = [info.name for info in capture.user_outputs(program)]
    if len(names) != len(fields):
        names = [f"output_{k}" for k in range(len(fields))]
    return tuple(
        TensorSpec(name, tuple(int(d) for d in field.shape), str(field.dtype))
        for name, field in zip(names, fields, strict=True)
    )
