"""The mean error of each channel of a layer, which its bias can take back.

Rounded weights, and clipped or rounded inputs, shift the mean of a layer's output. Measured on calibration data it is
exact for that data; the fast form needs no data: it follows from the batch norms, which tell the distribution of what
they normalize (Nagel et al., "Data-free quantization through weight equalization and bias correction", 2019).
"""

from __future__ import annotations

import math

import torch
from torch.fx import Node

from qcompiler.quantization.batch_norms import NORMAL, Normal, attribute
from qcompiler.quantization.operator_classes import argument, aten, is_clamp, is_plain_sum
from qcompiler.quantization.optimize.effects import Batch, Change
from qcompiler.quantization.optimize.sweep import Layer, Samples, add_to_bias, layers_of, walk
from qcompiler.quantization.simulation import Simulation, Values


def correct_biases(simulation: Simulation, batches: list[Batch]) -> Change:
    """Each layer's bias takes back the mean error of its outputs on the batches, the layers before it included."""
    layers = layers_of(simulation)

    def adapt(layer: Layer, samples: Samples) -> None:
        weight = attribute(simulation.prepared, str(layer.weight.target))
        values = {layer.quantizer: simulation.quantized(layer.quantizer, weight.detach())}
        bias = layer.bias
        if bias is not None:
            values[bias] = attribute(simulation.prepared, str(bias.target)).detach()
        shift = torch.zeros(weight.shape[0], dtype=torch.float64)
        count = 0
        for x, expected in zip(samples.inputs, samples.expected, strict=True):
            found = simulation.compute(layer.node, {**values, layer.source: x}, ())
            difference = (expected - found).double()
            axis = 1 if layer.node.target is aten.conv2d.default else difference.dim() - 1
            shift += difference.sum(dim=[d for d in range(difference.dim()) if d != axis])
            count += difference.numel() // len(shift)
        add_to_bias(simulation.prepared, layer, shift / count)

    walk(simulation, batches, layers, adapt)
    return Change(len(layers))


def correct_biases_fast(simulation: Simulation, batches: list[Batch]) -> Change:
    """Each layer's bias takes back the mean error that rounding its weights causes, from batch norms' statistics.

    Of the batches only the shapes that they give are used.
    """
    known = _Means(simulation, simulation.run(batches[0], ()))
    refused, changed = [], 0
    for layer in layers_of(simulation):
        mean = known.mean(layer.source)
        if mean is None:
            refused.append(f"no batch norm tells the mean of what {known.origin(layer.source)} gives")
            continue
        weight = attribute(simulation.prepared, str(layer.weight.target)).detach()
        error = (simulation.quantized(layer.quantizer, weight) - weight).double()
        groups = argument(layer.node, 6, "groups", 1) if layer.node.target is aten.conv2d.default else 1
        assert isinstance(groups, int), layer
        # Padding is left out of account: its share of the windows is small.
        a_row = error.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1).sum(dim=3)
        repeat = weight.shape[1] * groups // len(mean)
        means = mean.repeat_interleave(repeat).reshape(groups, -1, 1)
        add_to_bias(simulation.prepared, layer, -(a_row @ means).flatten())
        changed += 1
    return Change(changed, tuple(refused))


class _Means:
    """The means of tensors' channels, as far as batch norms tell them.

    A layer with a batch norm gives a normal distribution. A sum of two has the sum of the means and, the two taken to be
    independent, of the variances. A clamp makes a normal distribution a clipped one, whose mean is exact and which the
    next operator takes for normal again.
    """

    def __init__(self, simulation: Simulation, values: Values) -> None:
        self._quantizers = simulation.quantizers
        self._shapes = {n: tuple(v.shape) for n, v in values.items() if isinstance(v, torch.Tensor)}
        self._known: dict[Node, Normal | None] = {}

    def mean(self, node: Node) -> torch.Tensor | None:
        """Float64, one value a channel, or None."""
        normal = self._normal(node)
        return None if normal is None else normal.mean

    def origin(self, node: Node) -> str:
        """The operator whose result has no known mean, behind quantizers and what keeps means."""
        source = self._through(node)
        return "the model's input" if source.op == "placeholder" else str(source.target).split(".")[-2]

    def _through(self, node: Node) -> Node:
        while node in self._quantizers:
            (node,) = node.all_input_nodes
        return node

    def _normal(self, node: Node) -> Normal | None:
        node = self._through(node)
        if node not in self._known:
            self._known[node] = self._find(node)
        return self._known[node]

    def _find(self, node: Node) -> Normal | None:
        own = node.meta.get(NORMAL)
        if isinstance(own, Normal):
            return own
        if node.op != "call_function":
            return None
        if is_plain_sum(node):
            first, second = (self._normal(n) for n in (node.args[0], node.args[1]) if isinstance(n, Node))
            if first is None or second is None or len(first.mean) != len(second.mean):
                return None
            return Normal(first.mean + second.mean, torch.hypot(first.deviation, second.deviation))
        if is_clamp(node):
            source = self._normal(node.all_input_nodes[0])
            return None if source is None else _clamped(source, *_bounds(node))
        if node.target in _MEAN_KEEPING and self._keeps_channels(node):
            return self._normal(node.all_input_nodes[0])
        return None

    def _keeps_channels(self, node: Node) -> bool:
        """Whether an operator's channels are its input's, possibly with all positions of one behind each other."""
        before, after = self._shapes[node.all_input_nodes[0]], self._shapes[node]
        if node.target is aten.avg_pool2d.default and argument(node, 3, "padding", 0) not in (0, [0, 0]):
            return False
        spatial = len(before) == 4 and before[:1] == after[:1]
        return spatial and (before[:2] == after[:2] or len(after) == 2)


_MEAN_KEEPING = frozenset(
    {
        aten.adaptive_avg_pool2d.default,
        aten.avg_pool2d.default,
        aten.clone.default,
        aten.flatten.using_ints,
        aten.mean.dim,
        aten.reshape.default,
        aten.view.default,
    }
)
"""The mean of each channel is that of the input, if the channels stay; the deviation is not, and only bounds it."""


def _bounds(node: Node) -> tuple[float, float]:
    if node.target is aten.relu.default:
        return 0.0, math.inf
    if node.target is aten.relu6.default:
        return 0.0, 6.0
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    if node.target is aten.hardtanh.default:
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    elif node.target is aten.clamp_max.default:
        low, high = None, argument(node, 1, "max")
    return (
        float(low) if isinstance(low, (int, float)) else -math.inf,
        float(high) if isinstance(high, (int, float)) else math.inf,
    )


def _clamped(normal: Normal, low: float, high: float) -> Normal:
    """Mean and deviation of a normal distribution whose values beyond the bounds are put onto them."""
    deviation = normal.deviation.clamp(min=1e-12)
    a, b = ((torch.tensor(bound).double() - normal.mean) / deviation for bound in (low, high))

    def density(z: torch.Tensor) -> torch.Tensor:
        return torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi)

    def times(z: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return torch.where(z.isinf(), torch.zeros_like(value), z * value)

    below, above = torch.special.ndtr(a), torch.special.ndtr(-b)
    inside = 1 - below - above
    # In units of the deviation, with the mean at zero.
    first = density(a) - density(b) + times(a, below) + times(b, above)
    second = inside + times(a, density(a)) - times(b, density(b)) + times(a, a * below) + times(b, b * above)
    variance = (second - first.square()).clamp(min=0.0)
    return Normal(normal.mean + deviation * first, deviation * variance.sqrt())
