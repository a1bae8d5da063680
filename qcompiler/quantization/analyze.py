"""Where a quantized model loses accuracy, layer by layer, and why.

Every quantizer belongs to one row: that of a weight to the layer that reads it, that of an activation to the layer that
gives it. So the rows' errors add up to the model's, and one can ask what each costs alone.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch.fx import Node

from qcompiler.quantization.calibration import Batch, track
from qcompiler.quantization.layers import name_layers
from qcompiler.quantization.operator_classes import SHARING_CLASSES, operator_name
from qcompiler.quantization.optimize.effects import decibels, sqnr
from qcompiler.quantization.places import module_path
from qcompiler.quantization.quantizer import Calibrated
from qcompiler.quantization.simulation import Simulation, Values, fake_quantize

Cause = Literal["clipping", "activation rounding", "weight rounding"]

CAUSES: tuple[Cause, ...] = ("clipping", "activation rounding", "weight rounding")


@dataclass(frozen=True)
class LayerError:
    """What quantization does to one layer and through it to the model's outputs; ratios in decibels.

    Attributes:
        name: as plans have it; ``input NAME`` and ``float NAME`` for a float tensor that is quantized for the next.
        operator: its operators, as in ``conv2d + add + relu``.
        sqnr_db: signal to quantization noise of its output when it alone is quantized and its input is exact.
        model_sqnr_db: the same in the quantized model, with the errors of the layers before it.
        shares: for each cause its share of the layer's own squared error.
        cause: the largest of them; None without an error.
        outlier_channel: the output channel of the largest range; None without channels.
        outlier_ratio: its range beside the median channel's.
        only_db: of the model's outputs when only this layer is quantized.
        without_db: of the model's outputs when all but this layer is quantized.
    """

    name: str
    operator: str
    sqnr_db: float
    model_sqnr_db: float
    shares: dict[str, float]
    cause: Cause | None
    outlier_channel: int | None
    outlier_ratio: float | None
    only_db: float
    without_db: float


@dataclass(frozen=True)
class LayerErrors:
    """The errors of a model.

    Attributes:
        model_db: signal to quantization noise of the quantized model's outputs, in decibels.
        samples: samples that it was measured on.
        layers: in the model's order.
    """

    model_db: float
    samples: int
    layers: tuple[LayerError, ...]


@dataclass
class _Row:
    """A layer's quantizers, and the sums of its squared values and errors over the batches."""

    name: str
    operator: str
    axis: int
    nodes: tuple[Node, ...]
    weights: list[Node] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)
    signal: float = 0.0
    noise: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    model_noise: float = 0.0
    ranges: torch.Tensor | None = None
    only: list[tuple[torch.Tensor, ...]] = field(default_factory=list)
    without: list[tuple[torch.Tensor, ...]] = field(default_factory=list)

    @property
    def own(self) -> frozenset[Node]:
        return frozenset((*self.weights, *self.outputs))


def analyze_layers(calibrated: Calibrated, batches: Sequence[Batch], progress: bool = False) -> LayerErrors:
    """Measure every layer of a calibrated model.

    The model is run twice a batch, in float and quantized; what changes with a layer's quantizers is then computed from
    these values, so that a layer costs what comes behind it, once in float and once quantized: a model of n layers
    takes about as long as n runs of it.

    Args:
        calibrated: the model.
        batches: inputs to measure on, from the calibration data or others.
        progress: show a progress bar.
    """
    simulation = Simulation(calibrated.model)
    rows = _rows(calibrated, simulation)
    everything = simulation.quantizers
    exact: list[tuple[torch.Tensor, ...]] = []
    found: list[tuple[torch.Tensor, ...]] = []
    with torch.no_grad():
        for batch in track(batches, progress, "Analyzing"):
            floats = simulation.run(batch, ())
            rounded = simulation.run(batch, everything)
            exact.append(simulation.outputs(floats))
            found.append(simulation.outputs(rounded))
            for row in rows:
                _measure(simulation, row, floats, rounded)
                row.only.append(simulation.rerun(floats, row.own, row.own))
                row.without.append(simulation.rerun(rounded, row.own, everything - row.own))
    layers = tuple(_error(row, exact) for row in rows)
    samples = sum(len(b[0]) if b and b[0].dim() else 1 for b in batches)
    return LayerErrors(sqnr(zip(exact, found, strict=True)), samples, layers)


def _rows(calibrated: Calibrated, simulation: Simulation) -> list[_Row]:
    units = calibrated.quantizer.selection.units
    by_output = {unit.output: unit for unit in units}
    names = {unit.output: name for name, unit in name_layers(units, simulation.nodes).items()}

    def origin(node: Node) -> Node:
        """What gave the values of a tensor, before they were moved."""
        while True:
            unit = by_output.get(node)
            if unit is not None and unit.kind in SHARING_CLASSES:
                node = unit.inputs[0][0]
            elif node in simulation.observers or node.target is operator.getitem:
                node = node.all_input_nodes[0]
            else:
                return node

    def row(output: Node) -> _Row:
        unit = by_output.get(output)
        if unit is not None:
            described = " + ".join(operator_name(n) for n in unit.nodes)
            # The channels of a linear layer's result are its last dimension.
            axis = -1 if unit.kind == "linear" else 1
            return _Row(names[output], described, axis, unit.nodes)
        if output.op == "placeholder":
            return _Row(f"input {output.target}", "input", 1, ())
        return _Row(f"float {module_path(output) or output.name}", operator_name(output), 1, ())

    rows: dict[Node, _Row] = {}
    for quantizer in simulation.observers:
        (source,) = quantizer.all_input_nodes
        if simulation.is_constant(quantizer):
            reader = next(unit for unit in units if set(quantizer.users) & set(unit.nodes))
            if reader.output not in rows:
                rows[reader.output] = row(reader.output)
            rows[reader.output].weights.append(quantizer)
            continue
        node = origin(source)
        if node not in rows:
            rows[node] = row(node)
        rows[node].outputs.append(quantizer)
    order = {node: i for i, node in enumerate(simulation.nodes)}
    return [rows[node] for node in sorted(rows, key=order.__getitem__)]


def _measure(simulation: Simulation, row: _Row, floats: Values, rounded: Values) -> None:
    output = row.nodes[-1] if row.nodes else row.outputs[0].all_input_nodes[0]
    value = floats[output]
    if not isinstance(value, torch.Tensor):
        return
    row.signal += _squares(value)
    row.model_noise += _squares(_final(row, output, rounded) - value)
    if value.dim() > 1 and value.shape[row.axis] > 1:
        others = [d for d in range(value.dim()) if d != row.axis % value.dim()]
        ranges = value.abs().amax(dim=others)
        row.ranges = ranges if row.ranges is None else torch.maximum(row.ranges, ranges)
    if row.weights:
        changed = simulation.update(dict(floats), (*row.weights, *row.nodes), row.weights)[output]
        row.noise["weight rounding"] += _squares(changed - value)
    if row.outputs:
        observer = simulation.observers[row.outputs[0]]
        low, high = limits(observer)
        clipped = value.clamp(low, high)
        row.noise["clipping"] += _squares(clipped - value)
        row.noise["activation rounding"] += _squares(fake_quantize(value, observer) - clipped)


def _final(row: _Row, output: Node, values: Values) -> torch.Tensor:
    """A row's output in the quantized model, rounded if it is quantized."""
    value = (
        values[row.outputs[0]]
        if row.outputs and row.outputs[0].all_input_nodes == [output]
        else values[output]
    )
    assert isinstance(value, torch.Tensor), output
    return value


def limits(observer: object) -> tuple[float, float]:
    """The least and the largest real value that a calibrated activation observer can represent."""
    scale, zero_point = observer.calculate_qparams()  # type: ignore[attr-defined]
    low, high = observer.quant_min, observer.quant_max  # type: ignore[attr-defined]
    return float(scale) * (low - int(zero_point)), float(scale) * (high - int(zero_point))


def _squares(value: torch.Tensor) -> float:
    return float(value.double().square().sum())


def _error(row: _Row, exact: list[tuple[torch.Tensor, ...]]) -> LayerError:
    total = sum(row.noise.values())
    channel = ratio = cause = None
    if total:
        cause = max(CAUSES, key=lambda c: row.noise[c])
    if row.ranges is not None:
        median = float(row.ranges.median())
        channel = int(row.ranges.argmax())
        ratio = float(row.ranges.max()) / median if median else None
    signal = row.signal or 1.0
    return LayerError(
        name=row.name,
        operator=row.operator,
        sqnr_db=decibels([total / signal]),
        model_sqnr_db=decibels([row.model_noise / signal]),
        shares={c: noise / total if total else 0.0 for c, noise in row.noise.items()},
        cause=cause,
        outlier_channel=channel,
        outlier_ratio=ratio,
        only_db=sqnr(zip(exact, row.only, strict=True)),
        without_db=sqnr(zip(exact, row.without, strict=True)),
    )
