"""From a float program to a module to train: fake quantization where post-training quantization quantizes.

The graph goes the way of :func:`qcompiler.quantization.quantizer.quantize`: canonical spellings, batch norms folded,
annotated by the target's rules. What stands where an observer would stand is a fake quantization, and layers are
modules that hold their batch norms.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torchao.quantization.pt2e.quantize_pt2e import prepare_pt2e

from qcompiler.config import CompileConfig
from qcompiler.quantization.annotate import TargetQuantizer
from qcompiler.quantization.batch_norms import FOLDED, Folded, attribute, rewrite_batch_norms
from qcompiler.quantization.observers import activation_observer
from qcompiler.quantization.operator_classes import MATMUL_CLASSES, operator_name
from qcompiler.quantization.places import place
from qcompiler.quantization.quantizer import canonical_graph, observe
from qcompiler.quantization.training.batch_size import (
    BatchUse,
    FixedBatchError,
    batch_of,
    batch_uses,
    free_batch,
)
from qcompiler.quantization.training.fake_quantize import FakeQuantize
from qcompiler.quantization.training.layers import Norm, QuantizedLayer, QuantizedWeights
from qcompiler.quantization.training.module import QATModule
from qcompiler.targets.base import QuantizationRules

log = logging.getLogger(__name__)


def prepare_training(
    ep: ExportedProgram,
    rules: QuantizationRules,
    config: CompileConfig,
    *,
    other: ExportedProgram | None = None,
    batches: Iterable[tuple[torch.Tensor, ...]] | None = None,
    learned_scales: bool = False,
) -> QATModule:
    """A module that trains what the target will run.

    Args:
        ep: the float program, of float32 weights, exported for inference.
        rules: what the target's integer kernels accept.
        config: what stays in float, and the observer of the calibration data.
        other: the same model exported at another batch size, so that the module takes any; else it takes its own.
        batches: calibration inputs for the first ranges, or None: the first training batch gives them.
        learned_scales: whether scales are parameters.

    Raises:
        QuantizationError: ``keep_float`` names what the model does not have.
        CalibrationError: there is no batch in ``batches``, or a tensor is not finite.
    """
    model, examples = canonical_graph(ep)
    depthwise = "conv2d" in rules.operators
    rewrite_batch_norms(model, depthwise)
    uses = None if other is None else _batch_uses(model, other, depthwise)
    observer = FakeQuantize.with_args(learned=learned_scales, observer=activation_observer(config))
    quantizer = TargetQuantizer(rules, config, observer)
    prepared = prepare_pt2e(model, quantizer)
    _name_places(prepared)
    if batches is not None:
        _first_ranges(prepared, batches, config)
    _Layers(prepared, model, quantizer, learned_scales).replace()
    if uses:
        free_batch(prepared, uses)
    prepared.graph.eliminate_dead_code()
    # A new module holds only what the graph uses, and may be set to training and evaluation. The program's tensors
    # are those of the model that it was exported from, which is not to be trained.
    network = GraphModule(prepared, prepared.graph)
    network.meta.update(prepared.meta)
    _tell_kept_statistics(network)
    return QATModule(
        copy.deepcopy(network),
        rules,
        tuple(quantizer.float_operators),
        None if uses is not None else batch_of(examples),
        _results_of_modules(network),
    )


def _results_of_modules(network: GraphModule) -> dict[str, str]:
    """The last node of each module of the original model, by the module's path."""
    results: dict[str, str] = {}
    for node in network.graph.nodes:
        for path, _ in (node.meta.get("nn_module_stack") or {}).values():
            if path and isinstance(node.meta.get("val"), torch.Tensor):
                results[str(path)] = node.name
    return results


def _batch_uses(model: GraphModule, other: ExportedProgram, depthwise: bool) -> list[BatchUse] | None:
    counterpart, _ = canonical_graph(other)
    rewrite_batch_norms(counterpart, depthwise)
    try:
        return batch_uses(model, counterpart)
    except FixedBatchError as error:
        log.warning("the model can be trained only at the batch size of its example inputs: %s", error)
        return None


def _fake_quantizations(model: GraphModule) -> list[FakeQuantize]:
    return [m for m in model.modules() if isinstance(m, FakeQuantize)]


def _name_places(prepared: GraphModule) -> None:
    """Tell each fake quantization what it quantizes; one of several tensors is named after the first."""
    modules = dict(prepared.named_modules(remove_duplicate=False))
    for node in reversed(prepared.graph.nodes):
        module = modules[str(node.target)] if node.op == "call_module" else None
        source = node.args[0] if node.args else None
        if isinstance(module, FakeQuantize) and isinstance(source, Node):
            named = source.op == "call_function"
            module.place = f"{operator_name(source)} at {place(source)}" if named else source.name


def _first_ranges(
    prepared: GraphModule, batches: Iterable[tuple[torch.Tensor, ...]], config: CompileConfig
) -> None:
    for module in _fake_quantizations(prepared):
        module.calibrating = True
    with torch.no_grad():
        observe(prepared, list(batches), config)
    for module in _fake_quantizations(prepared):
        module.end_calibration()


def _tell_kept_statistics(network: GraphModule) -> None:
    for node in network.graph.nodes:
        if node.target is torch.ops.aten._native_batch_norm_legit_no_training.default:
            log.warning("the batch norm at %s stays in float, and keeps its running statistics", place(node))


class _Layers:
    """Replaces convolutions and linear layers, with their weights and batch norms, by modules.

    Args:
        prepared: the graph with observers.
        original: the module that it was made from, which still has the tensors that were folded.
        quantizer: what annotated it.
        learned: whether scales are parameters.
    """

    def __init__(
        self, prepared: GraphModule, original: GraphModule, quantizer: TargetQuantizer, learned: bool
    ) -> None:
        self.model, self.original = prepared, original
        self.rules, self.learned = quantizer.rules, learned
        self.modules = dict(prepared.named_modules(remove_duplicate=False))
        self.quantized = {
            u.nodes[0]: u.nodes[0] for u in quantizer.selection.units if u.kind in MATMUL_CLASSES
        }
        self.norms: dict[tuple[object, ...], Norm] = {}
        self.ones: dict[str, torch.Tensor] = {}

    def replace(self) -> None:
        for node in list(self.model.graph.nodes):
            if node in self.quantized or FOLDED in node.meta:
                self._replace(node)

    def _replace(self, node: Node) -> None:
        source, weight, bias, *rest = (*node.args, None)[: max(len(node.args), 3)]
        assert isinstance(source, Node), node
        assert isinstance(weight, Node), node
        assert callable(node.target), node
        weights = None
        if node in self.quantized:
            fake = self.modules[str(source.target)]
            assert isinstance(fake, FakeQuantize), node
            weight = weight.args[0]  # behind the observer of weights
            assert isinstance(weight, Node), node
            channels = len(self._tensor(str(weight.target)))
            weights = QuantizedWeights(channels, self.rules.weight_range, fake, self.learned)
        folded = node.meta.get(FOLDED)
        if folded is None:
            tensors, norm = (self._tensor(str(weight.target)), self._bias(bias)), None
        else:
            tensors, norm = self._unfolded(folded, str(weight.target)), self._norm(folded)
        layer = QuantizedLayer(node.target, tuple(rest), *tensors, norm, weights)
        name = f"{node.name}_layer"
        self.model.add_module(name, layer)
        with self.model.graph.inserting_before(node):
            new = self.model.graph.call_module(name, (source,))
        new.meta = dict(node.meta)
        node.replace_all_uses_with(new)
        self.model.graph.erase_node(node)

    def _tensor(self, path: str) -> torch.Tensor:
        return attribute(self.original, path)

    def _bias(self, bias: object) -> torch.Tensor | None:
        return self._tensor(str(bias.target)) if isinstance(bias, Node) else None

    def _unfolded(self, folded: Folded, scaled: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The layer's own weight and bias."""
        if folded.weight is None:
            # A batch norm of its own is a depthwise convolution with ones.
            return torch.ones_like(self._tensor(scaled), requires_grad=False).detach(), None
        weight = self._tensor(folded.weight)
        return weight, None if folded.bias is None else self._tensor(folded.bias)

    def _norm(self, folded: Folded) -> Norm:
        """The batch norm; layers that share one share its statistics."""
        key = (*folded.norm, folded.epsilon)
        if key not in self.norms:
            gamma, beta, mean, variance = (None if p is None else self._tensor(p) for p in folded.norm)
            assert mean is not None
            # The class says how statistics are taken, which here is the functional batch norm's part.
            norm = nn.BatchNorm2d(len(mean), eps=folded.epsilon, momentum=folded.momentum or 0.1)
            for name, tensor in (("weight", gamma), ("bias", beta)):
                norm.register_parameter(name, None if tensor is None else _parameter(tensor))
            norm.running_mean, norm.running_var = mean, variance
            self.norms[key] = norm
        return self.norms[key]


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    """The tensor itself if it is a parameter; a buffer becomes one that is not trained."""
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
