"""Post-training static quantization of an exported program, by torchao's PT2E with a quantizer of our own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from qcompiler.config import CompileConfig
from qcompiler.errors import CalibrationError
from qcompiler.quantization.annotate import TargetQuantizer
from qcompiler.quantization.batch_norms import attribute, rewrite_batch_norms
from qcompiler.quantization.calibration import Batch, track
from qcompiler.quantization.canonical import canonicalize
from qcompiler.quantization.choose_ranges import choose_ranges
from qcompiler.quantization.layers import LAYER
from qcompiler.quantization.operator_classes import MATMUL_CLASSES, computes_float, operator_name
from qcompiler.quantization.optimize.apply import optimize
from qcompiler.quantization.optimize.effects import Effect
from qcompiler.quantization.places import FloatOperator, kept_float, place
from qcompiler.quantization.simulation import Simulation
from qcompiler.quantization.weights import PerChannelWeightObserver
from qcompiler.targets.base import QuantizationRules

_PLACE_KEYS = ("nn_module_stack", "stack_trace", LAYER)


@dataclass(frozen=True, eq=False)
class Quantized:
    """What :func:`quantize_measured` gives.

    Attributes:
        program: in PT2E form, with functional operators only: int8 weights as constants, and
            ``quantized_decomposed`` quantize and dequantize operators around what integer kernels compute.
        float_operators: the operators left in float, in the program's order.
        effects: the optimizations that were tried, and what they gained.
    """

    program: ExportedProgram
    float_operators: list[FloatOperator]
    effects: tuple[Effect, ...] = ()


def quantize(
    ep: ExportedProgram,
    rules: QuantizationRules,
    batches: Iterable[Batch],
    config: CompileConfig,
) -> tuple[ExportedProgram, list[FloatOperator]]:
    """The program and the float operators of :func:`quantize_measured`."""
    result = quantize_measured(ep, rules, batches, config)
    return result.program, result.float_operators


def quantize_measured(
    ep: ExportedProgram,
    rules: QuantizationRules,
    batches: Iterable[Batch],
    config: CompileConfig,
) -> Quantized:
    """Quantize a float program with ranges found in calibration data.

    Args:
        ep: the float program, of float32 weights, exported for inference.
        rules: what the target's integer kernels accept.
        batches: calibration inputs, each a tuple with a tensor a model input, of the program's shapes and
            dtypes.
        config: how, and what stays in float.

    Raises:
        QuantizationError: ``keep_float`` names what the model does not have.
        CalibrationError: there is no batch, or a tensor is not finite.
    """
    calibrated = calibrate(ep, rules, batches, config)
    with torch.no_grad():
        program = to_program(calibrated.model, calibrated.examples)
    return Quantized(program, calibrated.quantizer.float_operators, calibrated.effects)


def to_program(prepared: GraphModule, examples: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """A graph whose observers know their ranges becomes a program in PT2E form.

    Args:
        prepared: the graph with observers; it is changed.
        examples: inputs of the shapes to export with.
    """
    converted = convert_pt2e(prepared, fold_quantize=True)
    _drop_unused(converted)
    quantized = torch.export.export(converted, examples)
    _copy_places(converted, quantized)
    return quantized


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A float graph with observers that have seen the calibration data.

    Attributes:
        model: the graph; what :attr:`quantizer` would quantize goes through observers, whose nodes call modules.
        quantizer: annotated the graph; its selection holds the units that are to be computed in integers.
        examples: inputs to export it with again.
        effects: the optimizations that were tried.
    """

    model: GraphModule
    quantizer: TargetQuantizer
    examples: tuple[torch.Tensor, ...]
    effects: tuple[Effect, ...] = ()


def calibrate(
    ep: ExportedProgram,
    rules: QuantizationRules,
    batches: Iterable[Batch],
    config: CompileConfig,
) -> Calibrated:
    """The first half of :func:`quantize`: every scale is found and the weights are adapted.

    Raises:
        QuantizationError: ``keep_float`` names what the model does not have.
        CalibrationError: there is no batch, or a tensor is not finite.
    """
    samples = list(batches)
    if not samples:
        raise CalibrationError("the calibration data is empty; give at least one batch")
    model, examples = canonical_graph(ep)
    rewrite_batch_norms(model, depthwise="conv2d" in rules.operators)
    quantizers: dict[GraphModule, TargetQuantizer] = {}

    def prepare(graph: GraphModule) -> Simulation:
        quantizer = TargetQuantizer(rules, config)
        prepared = prepare_pt2e(graph, quantizer)
        quantizers[prepared] = quantizer
        observe(prepared, samples, config)
        simulation = Simulation(prepared)
        if config.methods.calibration_method == "auto":
            choose_ranges(simulation, samples)
        _fit_weights(prepared, quantizer)
        return simulation

    def refit(simulation: Simulation) -> None:
        _fit_weights(simulation.prepared, quantizers[simulation.prepared])

    with torch.no_grad():
        simulation, effects = optimize(model, samples, config, prepare, refit)
    prepared = simulation.prepared
    return Calibrated(prepared, quantizers[prepared], examples, tuple(effects))


def respell(ep: ExportedProgram) -> ExportedProgram:
    """A program that is quantized already, in functional operators of the spellings that the importer takes.

    Args:
        ep: a program in PT2E form.
    """
    model, examples = canonical_graph(ep)
    with torch.no_grad():
        respelled = torch.export.export(model, examples)
    _copy_places(model, respelled)
    return respelled


def leave_float(ep: ExportedProgram, config: CompileConfig) -> Quantized:
    """A program of which nothing is quantized, as :func:`respell` spells it, and its float operators.

    Args:
        ep: a float program.
        config: the precisions.

    Raises:
        QuantizationError: ``layer_precision`` or ``keep_float`` names what the model does not have.
    """
    program = respell(ep)
    nodes = [n for n in program.graph.nodes if n.op == "call_function"]
    reasons = kept_float(nodes, config)
    floats = [FloatOperator(operator_name(n), place(n), reasons[n]) for n in nodes if computes_float(n)]
    return Quantized(program, floats)


def canonical_graph(ep: ExportedProgram) -> tuple[GraphModule, tuple[torch.Tensor, ...]]:
    """The program's graph, canonical, and inputs to export it with again."""
    # Without in-place operators a tensor has one value, and one range.
    model = ep.run_decompositions({}).module(check_guards=False)
    assert isinstance(model, GraphModule)
    examples = tuple(
        torch.zeros(n.meta["val"].shape, dtype=n.meta["val"].dtype)
        for n in model.graph.nodes
        if n.op == "placeholder"
    )
    canonicalize(model)
    return model, examples


def observe(prepared: GraphModule, batches: Sequence[Batch], config: CompileConfig) -> None:
    """Show every batch to the observers.

    Raises:
        CalibrationError: a tensor is not finite.
    """
    modules = dict(prepared.named_modules(remove_duplicate=False))
    hooks, hooked = [], set()
    for node in prepared.graph.nodes:
        observer = modules[str(node.target)] if node.op == "call_module" else None
        if observer is None or observer in hooked:
            continue  # an observer of several tensors is named after the first
        hooked.add(observer)
        source = node.args[0]
        assert isinstance(source, Node), node
        hooks.append(observer.register_forward_pre_hook(_finite(source)))
    for batch in track(batches, config.progress):
        prepared(*batch)
    for hook in hooks:
        hook.remove()


def _finite(source: Node) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
    """A hook that refuses NaN and infinities, which no range can hold."""
    name = f"{operator_name(source)} at {place(source)}" if source.op == "call_function" else source.name

    def check(_: torch.nn.Module, arguments: tuple[torch.Tensor, ...]) -> None:
        (value,) = arguments
        # The sum is the quick way to know; it may also overflow.
        if not bool(value.sum().isfinite()) and not bool(value.isfinite().all()):
            raise CalibrationError(
                f"{name} takes values that are NaN or infinite on the calibration data; check the data and "
                "the model's weights"
            )

    return check


def _fit_weights(prepared: GraphModule, quantizer: TargetQuantizer) -> None:
    """Make each layer's weight scales large enough for its accumulator."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for unit in quantizer.selection.units:
        if unit.kind not in MATMUL_CLASSES:
            continue
        source, weight, bias = (*unit.nodes[0].args[:3], None)[:3]
        # Both operands come out of observers now, the bias out of the module.
        assert isinstance(source, Node)
        assert isinstance(weight, Node)
        observer = modules[str(weight.target)]
        assert isinstance(observer, PerChannelWeightObserver), unit
        scale, _ = modules[str(source.target)].calculate_qparams()
        values = attribute(prepared, str(bias.target)) if isinstance(bias, Node) else None
        observer.fit(float(scale), values)


def _drop_unused(model: GraphModule) -> None:
    """Remove the float weights that no node reads any more."""
    used = {n.target for n in model.graph.nodes if n.op == "get_attr"}
    tensors = [n for n, _ in (*model.named_parameters(), *model.named_buffers()) if n not in used]
    for path in tensors:
        owner, _, name = path.rpartition(".")
        delattr(model.get_submodule(owner), name)


def _copy_places(converted: GraphModule, quantized: ExportedProgram) -> None:
    """Give the nodes of a re-exported program the module paths and source lines that they came with."""
    originals = {n.name: n for n in converted.graph.nodes}
    for node in quantized.graph.nodes:
        sources = node.meta.get("from_node") or ()
        original = originals.get(sources[0].name) if sources else None
        if node.op != "call_function" or original is None:
            continue
        for key in _PLACE_KEYS:
            node.meta.pop(key, None)
            if key in original.meta:
                node.meta[key] = original.meta[key]
