"""Writes operators that have no import, or whose import would be wrong, in terms of others.

PyTorch knows most operators as compositions of simpler ones. Only what is not imported as it is is taken apart, so that
layers keep their operators; and what comes out is looked at again, until all of it can be imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._decomp import decomposition_table
from torch.export import ExportedProgram, default_decompositions

aten = torch.ops.aten

Decomposition = Callable[..., Any]

_AS_IT_IS: Any = NotImplemented
"""What a composition returns for a node that needs none."""

_ROUNDS = 8
"""Depth of compositions of compositions; PyTorch's deepest has three."""


_RECURRENT = (aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input)
"""Recurrent layers. They stay whole, and so in float, until quantization is done: a state that is rounded to 8 bits in
every step drifts away."""

_SPELLED_LATER = (aten.channel_shuffle.default, aten.conv2d.padding)
"""Operators that quantization spells in its own way."""


def unroll(program: ExportedProgram) -> ExportedProgram:
    """The same program with a copy of each recurrent layer's operators for every step."""
    found = {n.target for n in program.graph.nodes} & set(_RECURRENT)
    return program.run_decompositions({r: decomposition_table[r] for r in found}) if found else program


def decompose(program: ExportedProgram, importable: Collection[str]) -> ExportedProgram:
    """The same program, in operators that are imported as far as PyTorch knows how to compose the others.

    Args:
        program: an exported program.
        importable: names of the operators that are imported, such as ``conv2d.default``.
    """
    for _ in range(_ROUNDS):
        table = {}
        for node in program.graph.nodes:
            operator = _operator(node)
            if operator is None or operator in table:
                continue
            if operator in _OWN and _OWN[operator][0](node):
                table[operator] = _OWN[operator][1]
            elif operator.__name__ not in importable and operator not in (
                *_OWN,
                *_RECURRENT,
                *_SPELLED_LATER,
            ):
                found = _known(operator)
                if found is not None:
                    table[operator] = found
        if not table:
            break
        program = program.run_decompositions(table)
    return program


def _operator(node: fx.Node) -> torch._ops.OpOverload | None:
    target = node.target
    aten_operator = isinstance(target, torch._ops.OpOverload) and target.namespace == "aten"
    return target if node.op == "call_function" and aten_operator else None  # type: ignore[return-value]


def _known(operator: torch._ops.OpOverload) -> Decomposition | None:
    """PyTorch's own composition of an operator, or None."""
    # The second table takes operators apart further, into a dialect that is not imported.
    for table in (default_decompositions(), decomposition_table):
        if operator in table:
            return table[operator]
    return None


def _always(_node: fx.Node) -> bool:
    return True


def _select(x: Tensor, dim: int, index: int) -> Any:
    index = index % x.shape[dim]
    return aten.squeeze.dim(aten.slice.Tensor(x, dim, index, index + 1), dim)


def _several_indices(node: fx.Node) -> bool:
    return sum(i is not None for i in node.args[1]) > 1  # type: ignore[union-attr]


def _index(x: Tensor, indices: Sequence[Tensor | None]) -> Any:
    """Several index tensors, as one of the flattened axes."""
    axes = [a for a, i in enumerate(indices) if i is not None]
    if len(axes) < 2 or any(i is not None and i.dtype == torch.bool for i in indices):
        return _AS_IT_IS
    rest = [a for a in range(x.dim()) if a not in axes]
    extents = [x.shape[a] for a in axes]
    linear: Tensor | None = None
    for axis, extent in zip(axes, extents, strict=True):
        index = aten.remainder.Scalar(indices[axis].to(torch.int64), extent)  # type: ignore[union-attr]
        linear = index if linear is None else linear * extent + index
    assert linear is not None
    flat = x.permute(axes + rest).reshape([math.prod(extents), *(x.shape[a] for a in rest)])
    result = aten.index_select(flat, 0, linear.reshape([-1])).reshape(
        [*linear.shape, *(x.shape[a] for a in rest)]
    )
    if axes == list(range(axes[0], axes[-1] + 1)) and axes[0]:
        # Adjacent indices leave their axes where the first of them was.
        front = linear.dim()
        order = [*range(front, front + axes[0]), *range(front), *range(front + axes[0], result.dim())]
        result = result.permute(order)
    return result


def _unsafe_index(x: Tensor, indices: Sequence[Tensor | None]) -> Any:
    return aten.index.Tensor(x, indices)


def _no_whole_ratio(node: fx.Node) -> bool:
    source, result = (n.meta["val"].shape[2:] for n in (node.args[0], node))  # type: ignore[union-attr]
    return any(after % before for before, after in zip(source, result, strict=True))


def _nearest(x: Tensor, output_size: Sequence[int] | None, scale_factors: Sequence[float] | None) -> Any:
    size = output_size or [math.floor(n * f) for n, f in zip(x.shape[2:], scale_factors or (), strict=True)]
    if all(after % before == 0 for before, after in zip(x.shape[2:], size, strict=True)):
        return _AS_IT_IS
    for k, after in enumerate(size):
        # The ratio is a float32 in PyTorch; the positions are those that it computes.
        ratio = 1.0 / scale_factors[k] if scale_factors else x.shape[2 + k] / after
        positions = (torch.arange(after, dtype=torch.float32) * ratio).to(torch.int64)
        x = aten.index_select(
            x, 2 + k, torch.minimum(positions, torch.full_like(positions, x.shape[2 + k] - 1))
        )
    return x


def _clamped_integers(x: Tensor, low: Any = None, high: Any = None) -> Any:
    """Of integers: TVM's clamp is for floats."""
    if x.is_floating_point():
        return _AS_IT_IS
    if isinstance(low, float) or isinstance(high, float):
        return aten.clamp.default(x.to(torch.get_default_dtype()), low, high)
    for bound, pick in ((low, torch.maximum), (high, torch.minimum)):
        if bound is not None:
            x = pick(x, torch.full_like(x, int(bound)))
    return x


def _raised_integers(x: Tensor, low: float) -> Any:
    return _AS_IT_IS if x.is_floating_point() else aten.clamp.default(x, low, None)


def _lowered_integers(x: Tensor, high: float) -> Any:
    return _AS_IT_IS if x.is_floating_point() else aten.clamp.default(x, None, high)


def _by_a_ratio(node: fx.Node) -> bool:
    """Whether the ratio is given, and not what the extents say: TVM goes by the extents."""
    size = node.args[1] if len(node.args) > 1 else node.kwargs.get("output_size")
    return size is None and _no_whole_ratio(node)


def _of_integers(node: fx.Node) -> bool:
    return not node.args[0].meta["val"].is_floating_point()  # type: ignore[union-attr]


def _deviation(
    x: Tensor, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Any:
    return aten.sqrt(aten.var.correction(x, dim, correction=correction, keepdim=keepdim))


def _unfold(x: Tensor, dimension: int, size: int, step: int) -> Any:
    extent = (x.shape[dimension] - size) // step * step + 1
    return torch.stack([aten.slice.Tensor(x, dimension, k, k + extent, step) for k in range(size)], -1)


_OWN: dict[Any, tuple[Callable[[fx.Node], bool], Decomposition]] = {
    aten.select.int: (_always, _select),
    aten.index.Tensor: (_several_indices, _index),
    aten._unsafe_index.Tensor: (_always, _unsafe_index),
    aten.upsample_nearest2d.vec: (_no_whole_ratio, _nearest),
    aten.unfold.default: (_always, _unfold),
    aten.grid_sampler_2d.default: (_always, decomposition_table[aten.grid_sampler_2d.default]),
    aten.clamp_min.default: (_of_integers, _raised_integers),
    aten.clamp_max.default: (_of_integers, _lowered_integers),
    aten.upsample_bilinear2d.vec: (_by_a_ratio, decomposition_table[aten.upsample_bilinear2d.vec]),
    aten.clamp.default: (_of_integers, _clamped_integers),
    aten.std.correction: (_always, _deviation),
}
"""Compositions of our own, and for which nodes they are needed."""
