"""The same quantized model on another target: recompiled, run on both, compared."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tvm

from qcompiler import reference, runtime
from qcompiler.config import CompileConfig
from qcompiler.driver.bundle import REFERENCE_NAME
from qcompiler.driver.compile import IntegerModel, build, build_integer
from qcompiler.driver.cross.model import EmulatedModel, open_bundle, run_many
from qcompiler.driver.data import Array, Samples, chunks, read_samples
from qcompiler.driver.profile import attribute
from qcompiler.driver.quantized import Calibration, program_of, quantized_program, refuse_quantization
from qcompiler.driver.run import keep_valid
from qcompiler.driver.tuning.apply import TunedScheduler, open_logs
from qcompiler.driver.verify import Comparison, OutputVerification
from qcompiler.errors import BuildError, BundleError, ConfigError, CpuError
from qcompiler.passes.pipeline import Dump
from qcompiler.runtime import LayerRecord, Manifest, TensorSpec
from qcompiler.runtime.manifest import MANIFEST_NAME, OptimizationRecord
from qcompiler.targets import registry
from qcompiler.targets.base import Target

RANDOM_SAMPLES = 16
"""Runs on random inputs where no data is given."""

PROFILE_ROUNDS = 10
"""Turns in which both bundles are profiled, of :data:`PROFILE_REPEAT` runs each; the least time of a layer counts."""

PROFILE_REPEAT = 5


@dataclass(frozen=True)
class Side:
    """One of the two bundles.

    Attributes:
        target: name of its target.
        instruction: its target's multiply-accumulate instruction.
        activations: how its target stores activations: ``uint8``, or ``int8`` for q - 128.
        library_bytes: size of the library.
        constants_bytes: size of the constants outside of it.
        emulated: the processor that was emulated; None for a run on this machine's own, or for no run.
        not_run: why it was not run, or None.
        seconds: of all layers together; None where it did not run on this machine's own processor.
    """

    target: str
    instruction: str
    activations: str
    library_bytes: int
    constants_bytes: int
    emulated: str | None
    not_run: str | None
    seconds: float | None


@dataclass(frozen=True)
class LayerChange:
    """A layer on both targets.

    Attributes:
        name: the layer.
        operator: its operator.
        before: its instruction on the first target; None for none.
        after: and on the second.
        before_count: how often the instruction stands in its kernel.
        after_count: and on the second target.
        before_seconds: time of its kernel; None where it was not measured.
        after_seconds: and on the second target.
    """

    name: str
    operator: str
    before: str | None
    after: str | None
    before_count: int
    after_count: int
    before_seconds: float | None
    after_seconds: float | None


@dataclass(frozen=True)
class Migration:
    """What :func:`migrate` did.

    Attributes:
        bundle: the bundle for the second target.
        before: the first bundle.
        after: the second one.
        samples: samples that both ran on; 0 where one of them could not run.
        outputs: both bundles' outputs, compared; empty where one of them could not run.
        layers: layers of both, by name.
        only_before: layers that only the first has, as padding that a kernel of the second does itself.
        only_after: layers that only the second has.
        weights: packed weights of the first bundle and of the second, as shapes, where they differ.
        optimizations: what was tried to lower the error when the model was quantized.
        fault: what differs that must not, in one line, or None.
    """

    bundle: Path
    before: Side
    after: Side
    samples: int
    outputs: tuple[OutputVerification, ...]
    layers: tuple[LayerChange, ...]
    only_before: tuple[str, ...]
    only_after: tuple[str, ...]
    weights: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    optimizations: tuple[OptimizationRecord, ...]
    fault: str | None


def migrate(
    source: str,
    config: CompileConfig,
    *,
    output: Path,
    origin: str | None = None,
    calibration: Calibration = None,
    data: Path | None = None,
    threads: int | None = None,
    limit: int | None = None,
) -> Migration:
    """Compiles what a bundle was compiled from for another target, without the model that it came from.

    Args:
        source: a bundle with its reference embedded; or a model, which is compiled for ``origin`` too.
        config: how to compile; its target is the second one.
        output: folder of the new bundle.
        origin: the first target; for a bundle its own if None.
        calibration: for a float model, as of :func:`~qcompiler.driver.compile.compile_model`.
        data: ``.npz`` with an array an input to run both on; random inputs if None.
        threads: threads of a run; None for all physical cores.
        limit: samples to run at most.

    Raises:
        ConfigError: ``origin`` is not the bundle's target, or missing for a model, or calibration is given for a bundle.
        BundleError: the bundle has no reference, or ``output`` is the bundle itself.
        QCompilerError: the model, the data or the target cannot be used.
    """
    target = registry.resolve(config.target)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        if (Path(source) / MANIFEST_NAME).is_file():
            if calibration is not None:
                raise ConfigError(
                    f"{source} is a bundle, which is quantized already; leave the calibration data out"
                )
            refuse_quantization(config, f"bundle {source}")
            if config.plan is not None:
                raise ConfigError(f"plan {config.plan}: bundle {source} is quantized already; leave plan out")
            first = Path(source)
            model = from_bundle(first, origin)
            if output.resolve() == first.resolve():
                raise BundleError(f"output {output} is the bundle to migrate; choose another folder")
        else:
            if origin is None:
                raise ConfigError(
                    f"{source} is no bundle; for a model, say which target it comes from: --from TARGET"
                )
            first = Path(folder) / "first"
            model = _compile_first(source, registry.resolve(origin), target, config, calibration, first)
        tvm_target = registry.to_tvm(target, cores=1)
        scheduler = TunedScheduler(open_logs(target, config), tvm_target)
        dump = Dump(config.dump_ir)
        second = build_integer(model, target, tvm_target, scheduler, config, output, dump).result.bundle
        return compare(first, second, model.module, data=data, threads=threads, limit=limit)


def from_bundle(bundle: Path, origin: str | None = None) -> IntegerModel:
    """The integer model that a bundle carries for verification.

    Raises:
        BundleError: the bundle is damaged, or has none.
        ConfigError: ``origin`` is not its target.
    """
    manifest = runtime.verify(bundle)
    if REFERENCE_NAME not in manifest.files:
        raise BundleError(
            f"bundle {bundle} has no {REFERENCE_NAME}; migrate the model that it was compiled from"
        )
    if origin is not None and registry.resolve(origin).name != manifest.target_name:
        raise ConfigError(f"bundle {bundle} is for {manifest.target_name}, not for {origin}")
    module = reference.load(bundle / REFERENCE_NAME)
    return IntegerModel(
        module, manifest.inputs, manifest.outputs, manifest.float_operators, manifest.optimizations
    )


def _compile_first(
    source: str, first: Target, second: Target, config: CompileConfig, calibration: Calibration, output: Path
) -> IntegerModel:
    """Compiles a model for the first target; what is to be equal is quantized once, by rules that both have."""
    if first.rules != second.rules:
        raise ConfigError(
            f"targets {first.name} and {second.name} have different kernels, so a model is quantized differently for "
            "them; quantize it for one of them (qcompile quantize) and migrate that"
        )
    quantized = quantized_program(program_of(source, None, config), first, config, calibration)
    tvm_target = registry.to_tvm(first, cores=1)
    own = replace(config, target=first.name, embed_reference=True, dump_ir=None)
    scheduler = TunedScheduler(open_logs(first, own), tvm_target)
    build(quantized, first, tvm_target, scheduler, own, output)
    return from_bundle(output)


def compare(
    first: Path,
    second: Path,
    module: tvm.IRModule,
    *,
    data: Path | None = None,
    threads: int | None = None,
    limit: int | None = None,
) -> Migration:
    """Runs two bundles of one integer model and says what differs.

    Args:
        first: a bundle.
        second: a bundle of the same model for another target.
        module: the integer model, which says whether an output must be equal.
        data: as of :func:`migrate`.
        threads: as of :func:`migrate`.
        limit: as of :func:`migrate`.
    """
    manifests = [runtime.read_manifest(bundle) for bundle in (first, second)]
    samples = _random(manifests[0].inputs) if data is None else read_samples(data, manifests[0].inputs, limit)
    opened = [_open(bundle, threads) for bundle in (first, second)]
    native = [model if isinstance(model, runtime.Model) else None for model in opened]
    times = _times(native, samples)
    outputs: tuple[OutputVerification, ...] = ()
    models = [model for model in opened if not isinstance(model, str)]
    if len(models) == len(opened):
        outputs = _compared(models, samples, module)
    sides = [
        _side(bundle, manifest, model, found)
        for bundle, manifest, model, found in zip((first, second), manifests, opened, times, strict=True)
    ]
    changes, missing, added = _layers(manifests, times)
    failed = [o for o in outputs if not o.passed]
    return Migration(
        second, sides[0], sides[1], samples.count if outputs else 0, outputs, changes, missing, added,
        _weights(manifests), manifests[1].optimizations, f"output {failed[0].name!r} differs in {failed[0].differing} of {failed[0].elements} elements"
        if failed else None,
    )  # fmt: skip


def _random(specs: Sequence[TensorSpec]) -> Samples:
    """Inputs of the whole range that the model quantizes its inputs from; standard normal where it does not."""
    rng = np.random.default_rng(0)
    batch = specs[0].shape[0] if specs[0].shape else 1
    whole = any(not spec.shape or spec.shape[0] != batch for spec in specs)
    count = 1 if whole else RANDOM_SAMPLES * batch
    arrays = []
    for spec in specs:
        shape = spec.shape if whole else (count, *spec.shape[1:])
        if spec.scale is not None and spec.zero_point is not None:
            values = spec.scale * (rng.uniform(-0.5, 255.5, shape) - spec.zero_point)
        elif np.dtype(spec.dtype).kind in "iu":
            values = rng.integers(0, 2, shape).astype(np.float64)
        else:
            values = rng.standard_normal(shape)
        arrays.append(np.asarray(values, spec.dtype))
    return Samples(tuple(arrays), None, 1 if whole else batch, count, whole=whole)


def _open(bundle: Path, threads: int | None) -> runtime.Model | EmulatedModel | str:
    """A bundle to run, or why it cannot run here."""
    try:
        return open_bundle(bundle, threads)
    except (CpuError, BuildError) as error:
        return str(error)


def _times(models: Sequence[runtime.Model | None], samples: Samples) -> list[list[tuple[str, float]] | None]:
    """Kernel calls with the least of their times, taken in turns; None for what does not run on this processor."""
    rounds: list[list[list[tuple[str, float]]]] = [[] for _ in models]
    inputs = next(samples.batches())[1]
    for _ in range(PROFILE_ROUNDS):
        for model, found in zip(models, rounds, strict=True):
            if model is not None:
                found.append(model.profile(*inputs, repeat=PROFILE_REPEAT))
    return [
        [(calls[0][0], min(seconds for _, seconds in calls)) for calls in zip(*found, strict=True)]
        if found
        else None
        for found in rounds
    ]


def _compared(
    models: Sequence[runtime.Model | EmulatedModel], samples: Samples, module: tvm.IRModule
) -> tuple[OutputVerification, ...]:
    exact = [value.exact for value in reference.Interpreter(module).run(next(samples.batches())[1])]
    comparisons = [Comparison(spec.name) for spec in models[0].outputs]
    for chunk in chunks(samples.batches()):
        found = [run_many(model, [inputs for _, inputs in chunk]) for model in models]
        for (valid, _), before, after in zip(chunk, *found, strict=True):
            for k, comparison in enumerate(comparisons):
                wanted: Array = keep_valid(before[k], valid, samples)
                comparison.add(keep_valid(after[k], valid, samples), wanted, exact[k])
    return tuple(comparison.result() for comparison in comparisons)


def _side(
    bundle: Path,
    manifest: Manifest,
    model: runtime.Model | EmulatedModel | str,
    times: Sequence[tuple[str, float]] | None,
) -> Side:
    target = registry.resolve(manifest.target_name)
    return Side(
        target.name,
        target.instruction,
        target.activations,
        (bundle / "model.so").stat().st_size,
        sum(constant.size for constant in manifest.constants),
        model.cpu if isinstance(model, EmulatedModel) else None,
        model if isinstance(model, str) else None,
        None if times is None else sum(seconds for _, seconds in times),
    )


def _layers(
    manifests: Sequence[Manifest], times: Sequence[Sequence[tuple[str, float]] | None]
) -> tuple[tuple[LayerChange, ...], tuple[str, ...], tuple[str, ...]]:
    seconds = []
    for manifest, calls in zip(manifests, times, strict=True):
        found: dict[int, float] = {}
        for (_, taken), layer in attribute(calls or [], manifest.layers):
            if layer is not None:
                found[id(layer)] = taken
        seconds.append(found)
    keyed = [_keyed(manifest.layers) for manifest in manifests]
    changes = []
    for key, before in keyed[0].items():
        after = keyed[1].get(key)
        if after is not None:
            changes.append(
                LayerChange(
                    before.name, before.operator, before.instruction, after.instruction, before.instruction_count,
                    after.instruction_count, seconds[0].get(id(before)), seconds[1].get(id(after)),
                )
            )  # fmt: skip
    missing = tuple(layer.name for key, layer in keyed[0].items() if key not in keyed[1])
    added = tuple(layer.name for key, layer in keyed[1].items() if key not in keyed[0])
    return tuple(changes), missing, added


def _keyed(layers: Sequence[LayerRecord]) -> dict[tuple[str, str], LayerRecord]:
    return {(layer.name, layer.operator): layer for layer in layers}


def _weights(manifests: Sequence[Manifest]) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Pairs of shapes of packed int8 weights, in order, where they differ and each bundle has as many."""
    shapes = [[c.shape for c in manifest.constants if c.dtype == "int8"] for manifest in manifests]
    if len(shapes[0]) != len(shapes[1]):
        return ()
    return tuple((a, b) for a, b in zip(*shapes, strict=True) if a != b)
