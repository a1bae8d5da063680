"""The module that is trained, and what becomes of it when it is compiled."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from qcompiler.errors import QuantizationError
from qcompiler.quantization.places import FloatOperator
from qcompiler.quantization.quantizer import to_program
from qcompiler.quantization.training.batch_size import batch_of
from qcompiler.quantization.training.fake_quantize import FakeQuantize
from qcompiler.quantization.training.layers import Norm, QuantizedLayer, QuantizedWeights
from qcompiler.quantization.weights import PerChannelWeightObserver
from qcompiler.targets.base import QuantizationRules

Self = TypeVar("Self", bound="QATModule")


class QATModule(nn.Module):
    """A network under quantization-aware training; an ordinary module for optimizers, ``train`` and ``eval``.

    In evaluation mode it computes what the compiled library computes, up to the rounding of float32 sums.

    Args:
        network: the graph with fake quantization; its inputs and outputs are those of the original model.
        rules: the rules that it was prepared by.
        float_operators: the operators left in float.
        batch: the only batch size that it takes, or None for any.
        taps: nodes of ``network`` by the path of the original module whose result they are.
    """

    def __init__(
        self,
        network: GraphModule,
        rules: QuantizationRules,
        float_operators: tuple[FloatOperator, ...],
        batch: int | None,
        taps: dict[str, str],
    ) -> None:
        super().__init__()
        self.network = network
        self.rules = rules
        self.float_operators = float_operators
        self.batch = batch
        self._taps = taps
        self._frozen_norms = False

    def forward(self, *inputs: torch.Tensor) -> Any:
        """The original model's outputs.

        Raises:
            QuantizationError: a range is not known yet, or not finite; or the batch is of a size that the module was
                not prepared for.
        """
        if self.batch is not None and batch_of(inputs) not in (None, self.batch):
            raise QuantizationError(
                f"this module was prepared for batches of {self.batch} only, and got {batch_of(inputs)}; prepare a "
                "torch.nn.Module, which can be exported at other batch sizes"
            )
        return self.network(*inputs)

    def freeze(self, *, batch_norms: bool = True, ranges: bool = True) -> None:
        """End the search for statistics; weights and learned scales are trained on.

        To be called late in training: from then on the batch norms are part of their layers, as in the compiled
        model, and its last epochs train exactly what will run.

        Args:
            batch_norms: keep running means and variances, and compute with them.
            ranges: keep the ranges of activations that are tracked.
        """
        if batch_norms:
            self._frozen_norms = True
            self.train(self.training)
        if ranges:
            for module in self.modules():
                if isinstance(module, FakeQuantize):
                    module.tracking = False

    def train(self: Self, mode: bool = True) -> Self:
        super().train(mode)
        if self._frozen_norms:
            for module in self.modules():
                if isinstance(module, Norm):
                    module.eval()
        return self

    def get_extra_state(self) -> dict[str, list[bool] | bool]:
        """What is frozen, for ``state_dict``."""
        tracking = [m.tracking for m in self.modules() if isinstance(m, FakeQuantize)]
        return {"frozen_norms": self._frozen_norms, "tracking": tracking}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._frozen_norms = bool(state["frozen_norms"])
        fakes = [m for m in self.modules() if isinstance(m, FakeQuantize)]
        for module, tracking in zip(fakes, state["tracking"], strict=True):
            module.tracking = bool(tracking)
        self.train(self.training)

    def program(self, example_inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
        """The trained network in PT2E form, as post-training quantization gives it.

        Args:
            example_inputs: tensors of the shapes and dtypes to compile for.

        Raises:
            QuantizationError: a range is not known yet, or a weight is not finite.
        """
        network = copy.deepcopy(self.network).cpu().eval()
        for name, module in network.named_modules():
            if isinstance(module, FakeQuantize) and not module.seen:
                raise QuantizationError(
                    f"the range of {module.place} is not known yet; train the module first"
                )
            if isinstance(module, nn.Module) and not _finite(module):
                raise QuantizationError(
                    f"a weight of {name or 'the network'} is NaN or infinite after training; lower the learning rate"
                )
        for node in list(network.graph.nodes):
            module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(module, QuantizedLayer):
                _spell_out(network, node, module)
        network.recompile()
        with torch.no_grad():
            return to_program(network, tuple(x.detach().cpu() for x in example_inputs))

    def tap(self, names: Sequence[str]) -> nn.Module:
        """A module that shares everything with this one and returns its outputs with intermediate features.

        Args:
            names: paths of modules of the original model, such as ``layer1.0``; a feature is what that module
                returned, as its consumers get it, rounded where it is rounded.

        Returns:
            A module from the inputs to (outputs, features by name).

        Raises:
            QuantizationError: a name is no module whose result still exists.
        """
        graph = Graph()
        copies: dict[Node, Node] = {}
        outputs = graph.graph_copy(self.network.graph, copies)
        nodes = {n.name: n for n in self.network.graph.nodes}
        features = {}
        for name in names:
            if name not in self._taps:
                raise QuantizationError(
                    f"the model has no module {name!r} with a result of its own (a batch norm's is its layer's); "
                    f"there are: {', '.join(self._taps)}"
                )
            node = nodes[self._taps[name]]
            readers = [u for u in node.users if self._rounds(u)]
            features[name] = copies[readers[0] if len(readers) == len(node.users) == 1 else node]
        graph.output((outputs, features))
        return _Tapped(GraphModule(self.network, graph), self.network)

    def _rounds(self, node: Node) -> bool:
        return node.op == "call_module" and isinstance(
            self.network.get_submodule(str(node.target)), FakeQuantize
        )


class _Tapped(nn.Module):
    """A graph over flat inputs and outputs, with the outputs in the structure of the original's."""

    def __init__(self, flat: GraphModule, original: GraphModule) -> None:
        super().__init__()
        self.flat = flat
        assert original._out_spec is not None
        self._structure = original._out_spec

    def forward(self, *inputs: torch.Tensor) -> tuple[Any, dict[str, torch.Tensor]]:
        outputs, features = self.flat(*inputs)
        return pytree.tree_unflatten(list(outputs), self._structure), features


class _TrainedScales(PerChannelWeightObserver):
    """Stands for an observer of weights, and tells the scales that training ended with."""

    def __init__(self, weight_range: tuple[int, int], scales: torch.Tensor) -> None:
        super().__init__(
            dtype=torch.int8,
            qscheme=torch.per_channel_symmetric,
            quant_min=weight_range[0],
            quant_max=weight_range[1],
            ch_axis=0,
        )
        self.scales = scales

    def calculate_qparams(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.scales, torch.zeros(len(self.scales), dtype=torch.int64)


def _finite(module: nn.Module) -> bool:
    tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return all(bool(t.isfinite().all()) for t in tensors)


def _spell_out(network: GraphModule, node: Node, layer: QuantizedLayer) -> None:
    """Replace a layer's module by its operator, with the batch norm folded, as an observed graph has it."""
    with torch.no_grad():
        weight, bias = layer.folded()
    arguments: list[Node | None] = []
    with network.graph.inserting_before(node):
        for name, tensor in (("weight", weight), ("bias", bias)):
            if tensor is None:
                arguments.append(None)
                continue
            path = f"{node.name}_{name}"
            network.register_parameter(path, nn.Parameter(tensor.detach().clone(), requires_grad=False))
            arguments.append(network.graph.get_attr(path))
        if isinstance(layer.weights, QuantizedWeights):
            path = f"{node.name}_scales"
            scales = layer.weights.scales(weight, bias).detach()
            network.add_module(path, _TrainedScales(layer.weights.weight_range, scales))
            arguments[0] = network.graph.call_module(path, (arguments[0],))
        new = network.graph.call_function(layer.operator, (node.args[0], *arguments, *layer.rest))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    network.graph.erase_node(node)
