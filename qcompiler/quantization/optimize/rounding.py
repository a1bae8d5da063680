"""Weights are rounded up or down such that the layer's outputs change least, not the weights themselves.

With a float weight ``w``, the rounded one ``w + d`` and quantized inputs ``x``, the squared error of an output channel
over the calibration data is ``d H d``, where ``H`` is the mean of ``x x`` (Nagel et al., "Up or down? Adaptive rounding
for post-training quantization", 2020, equation 20). Each weight has two values to choose from, its neighbours in the grid.
The paper relaxes the choice and descends along gradients; here each weight is flipped in turn if that lowers the error,
until no flip does. The result is deterministic, and on the data it is never worse than rounding to the nearest.

The paper's section 3.4 lets a layer make up for the errors of the layers before it, too. Most of these are rounding of
activations, of which there is nothing to learn: on ResNet-20 that fitted noise, and cost 0.2 dB on other images.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from qcompiler.quantization.batch_norms import attribute
from qcompiler.quantization.operator_classes import argument, aten
from qcompiler.quantization.optimize.effects import Batch, Change
from qcompiler.quantization.optimize.sweep import Layer, Samples, layers_of, walk
from qcompiler.quantization.simulation import Simulation

SWEEPS = 8
"""Times that all weights are looked at, at most; few flip after the third."""

BLOCK = 128
"""Weights of a row between two updates of the gradient of all others: large enough for the matrix product."""

DAMPING = 0.01
"""Share of the mean square of the inputs that is added to each input's own: where the data says nothing, the nearest
value stays."""

POSITIONS = 4
"""Positions of the output that are looked at, for each input of a row; more would change the moments little."""

_LEAST_POSITIONS = 4096


def round_adaptively(simulation: Simulation, batches: list[Batch]) -> Change:
    """Choose the rounding of every layer's weights, in order, in place: weights become multiples of their scales."""
    layers = layers_of(simulation)

    def adapt(layer: Layer, samples: Samples) -> None:
        weight = attribute(simulation.prepared, str(layer.weight.target))
        observer = simulation.observers[layer.quantizer]
        scale, _ = observer.calculate_qparams()
        groups = argument(layer.node, 6, "groups", 1) if layer.node.target is aten.conv2d.default else 1
        assert isinstance(groups, int), layer
        grouped = weight.double().reshape(groups, weight.shape[0] // groups, -1)
        steps = scale.double().reshape(groups, -1, 1)
        moments = _moments(layer, samples, weight, groups)
        rounded = best_rounding(grouped, steps, moments, observer.quant_min, observer.quant_max)
        weight.copy_(rounded.reshape(weight.shape))

    walk(simulation, batches, layers, adapt)
    others = sum(1 for n in simulation.observers if simulation.is_constant(n)) - len(layers)
    return Change(len(layers), ("the weight is used more than once",) * others)


def _moments(layer: Layer, samples: Samples, weight: torch.Tensor, groups: int) -> torch.Tensor:
    """The mean of the products of a layer's inputs, float64 [groups, inputs, inputs]."""
    inputs = weight[0].numel()
    products = torch.zeros(groups, inputs, inputs)
    share = max(_LEAST_POSITIONS, POSITIONS * inputs) // len(samples.inputs) + 1
    count = 0
    for x in samples.inputs:
        for columns in _columns(layer, x, weight, groups, share):
            products += columns @ columns.transpose(1, 2)
            count += columns.shape[2]
    return products.double() / count


def _columns(
    layer: Layer, x: torch.Tensor, weight: torch.Tensor, groups: int, share: int
) -> Iterator[torch.Tensor]:
    """About ``share`` of a batch's windows, as [groups, inputs, positions]."""
    if layer.node.target is aten.linear.default:
        rows = x.reshape(-1, x.shape[-1])
        yield rows[:: max(1, len(rows) // share)].T[None]
        return
    stride, padding, dilation = (
        _pair(argument(layer.node, k, name, default))
        for k, name, default in ((3, "stride", 1), (4, "padding", 0), (5, "dilation", 1))
    )
    share = max(1, share // len(x))
    for sample in x:
        # A copy of the window's elements for each position; of some positions only, it would not be quicker.
        windows = F.unfold(sample[None], weight.shape[2:], dilation, padding, stride)[0]
        kept = windows[:, :: max(1, windows.shape[1] // share)]
        yield kept.reshape(groups, -1, kept.shape[1])


def _pair(value: object) -> tuple[int, int]:
    values = [v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, int)]
    assert values, value
    return values[0], values[-1]


def best_rounding(
    weight: torch.Tensor, steps: torch.Tensor, moments: torch.Tensor, low: int, high: int
) -> torch.Tensor:
    """Multiples of the steps next to the weights, of the least error.

    Args:
        weight: float64 [groups, rows, inputs].
        steps: float64, broadcast over it; the distance of two neighbouring values.
        moments: float64 [groups, inputs, inputs], symmetric: ``H``.
        low: the least quantized value.
        high: the largest.

    Returns:
        Float64 [groups, rows, inputs].
    """
    exact = weight / steps
    nearest = exact.round().clamp(low, high)
    other = torch.where(nearest > exact, nearest - 1, nearest + 1).clamp(low, high)
    damping = DAMPING * moments.diagonal(dim1=1, dim2=2).mean(dim=1)
    # Single precision is enough to compare two roundings, and twice as quick.
    curvature = (moments + damping[:, None, None] * torch.eye(moments.shape[1], dtype=torch.float64)).float()
    step = steps.float().expand(weight.shape[0], weight.shape[1], 1)
    current, flip = nearest.float(), (other - nearest).float()
    gradient = ((nearest - exact) * steps).float() @ curvature
    for _ in range(SWEEPS):
        flips = sum(
            _sweep_block(slice(k, k + BLOCK), current, flip, step, gradient, curvature)
            for k in range(0, weight.shape[2], BLOCK)
        )
        if not flips:
            break
    return current.double() * steps


def _sweep_block(
    block: slice,
    current: torch.Tensor,
    flip: torch.Tensor,
    step: torch.Tensor,
    gradient: torch.Tensor,
    curvature: torch.Tensor,
) -> int:
    """Flip each weight of a block of columns if it lowers the error; ``gradient`` is half of the error's."""
    inner = gradient[:, :, block].clone()
    square = curvature[:, block, block]
    moved = torch.zeros_like(inner)
    for j in range(inner.shape[2]):
        column = block.start + j
        change = flip[:, :, column] * step[:, :, 0]
        better = change * (2 * inner[:, :, j] + change * square[:, j, j, None]) < 0
        taken = torch.where(better, change, torch.zeros_like(change))
        moved[:, :, j] = taken
        inner += taken[:, :, None] * square[:, None, j, :]
        current[:, :, column] += torch.where(better, flip[:, :, column], torch.zeros_like(change))
        flip[:, :, column] = torch.where(better, -flip[:, :, column], flip[:, :, column])
    gradient += moved @ curvature[:, block, :]
    return int(moved.count_nonzero())
