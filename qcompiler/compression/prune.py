"""Structured pruning: channels that matter least are taken out of a module, which is smaller afterwards."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.export import ExportedProgram

from qcompiler.compression.channels import ChannelGraph, Labels, multiplications
from qcompiler.compression.importance import Importance, Slice, scores
from qcompiler.errors import CompressionError

TOLERANCE = 1e-3
"""Largest difference between the pruned network and the original with the same channels silenced, relative to the
largest output: sums of float32 in another order differ in their last digits."""


@dataclass(frozen=True)
class PrunedLayer:
    """Channels that lie along the same parameters, and what became of them.

    Attributes:
        name: the first parameter that computes them.
        before: how many there were.
        after: how many there are.
        reason: why none could be removed, or None.
    """

    name: str
    before: int
    after: int
    reason: str | None


@dataclass(frozen=True)
class Pruned:
    """What pruning made.

    Attributes:
        model: a smaller module of the same class; the original is left alone.
        multiplications: multiply-accumulates of one sample, before and after.
        layers: the families of channels, in the program's order.
    """

    model: nn.Module
    multiplications: tuple[int, int]
    layers: tuple[PrunedLayer, ...]


class _Family:
    """Channels with the same parameters behind them."""

    def __init__(self, labels: list[int], slices: tuple[Slice, ...], reason: str | None) -> None:
        self.labels, self.slices, self.reason = labels, slices, reason
        self.order: list[int] = []
        self.scores: dict[int, float] = {}

    @property
    def name(self) -> str:
        return self.slices[0].name


def prune(
    model: nn.Module,
    program: ExportedProgram,
    examples: tuple[torch.Tensor, ...],
    *,
    reduction: float,
    importance: Importance = "l1",
    multiple: int = 1,
    keep_at_least: float = 0.2,
    keep: tuple[str, ...] = (),
) -> Pruned:
    """Removes channels until a share of the multiplications is gone.

    Args:
        model: the module that ``program`` was exported from.
        program: its float program.
        examples: inputs of the program's shapes.
        reduction: the share of multiply-accumulates to remove, in (0, 1).
        importance: what tells which channels matter; see :func:`scores`.
        multiple: what remains of the channels of a layer that loses some is a multiple of it, so that the target's vectors are full.
        keep_at_least: share of each layer's channels that stays, in (0, 1].
        keep: paths of modules whose channels all stay.

    Raises:
        CompressionError: an option is out of its range, the reduction cannot be reached, or the module's ``forward``
            depends on numbers of channels that its graph does not show.
    """
    if not 0 < reduction < 1:
        raise CompressionError(f"reduction is {reduction}; it must be above 0 and below 1")
    if not 0 < keep_at_least <= 1:
        raise CompressionError(f"keep_at_least is {keep_at_least}; it must be above 0 and at most 1")
    if multiple < 1:
        raise CompressionError(f"multiple is {multiple}; it must be at least 1")
    if importance not in ("l1", "batch-norm", "taylor"):
        raise CompressionError(f"unknown importance {importance!r}; known: l1, batch-norm, taylor")
    modules = dict(model.named_modules())
    for path in keep:
        if path not in modules:
            raise CompressionError(f"keep: the model has no module {path!r}; it has: {', '.join(modules)}")
    graph = ChannelGraph(program)
    families = _families(graph, keep)
    _rank(families, model, importance)
    removed, before, after = _select(graph, families, reduction, multiple, keep_at_least)
    smaller = copy.deepcopy(model)
    kept = {
        name: {d: np.flatnonzero(~np.isin(graph.root(labels), list(removed))) for d, labels in dims.items()}
        for name, dims in graph.dimensions.items()
    }
    _rebuild(smaller, kept)
    _check(model, smaller, kept, examples)
    layers = tuple(
        PrunedLayer(f.name, len(f.labels), sum(label not in removed for label in f.labels), f.reason)
        for f in families
    )
    return Pruned(smaller, (before, after), layers)


def _families(graph: ChannelGraph, keep: tuple[str, ...]) -> list[_Family]:
    """Labels by the dimensions of parameters that they lie along."""
    places: dict[int, dict[tuple[str, int], list[int]]] = {}
    for name, dims in graph.dimensions.items():
        for dimension, labels in dims.items():
            for position, label in enumerate(graph.root(labels)):
                places.setdefault(int(label), {}).setdefault((name, dimension), []).append(position)
    grouped: dict[tuple[tuple[str, int], ...], list[int]] = {}
    for label, found in places.items():
        grouped.setdefault(tuple(found), []).append(label)
    families = []
    for parameters, members in grouped.items():
        reasons = [reason for label in members if (reason := graph.reason(label))]
        names = {name.rpartition(".")[0] for name, dimension in parameters if dimension == 0}
        kept = [p for p in keep if any(n == p or n.startswith(f"{p}.") for n in names)]
        if kept:
            reasons.insert(0, f"{kept[0]} is kept")
        slices = tuple(
            Slice(name, dimension, tuple(tuple(places[label][name, dimension]) for label in members))
            for name, dimension in parameters
        )
        families.append(_Family(members, slices, reasons[0] if reasons else None))
    return families


def _rank(families: list[_Family], model: nn.Module, importance: Importance) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    norms = frozenset(
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
    )
    for family in families:
        if family.reason is not None:
            continue
        found = scores(importance, family.slices, parameters, norms)
        if found is None:
            family.reason = f"nothing there tells their importance by {importance}"
            continue
        values = found.tolist()
        family.scores = dict(zip(family.labels, values, strict=True))
        family.order = sorted(family.labels, key=family.scores.__getitem__)


def _select(
    graph: ChannelGraph, families: list[_Family], reduction: float, multiple: int, keep_at_least: float
) -> tuple[set[int], int, int]:
    """The labels to remove: again and again the least important step of all families."""
    roots: dict[int, Labels] = {id(labels): graph.root(labels) for layer in graph.layers
                                for labels in (layer.inputs, layer.outputs) if labels is not None}  # fmt: skip
    removed: set[int] = set()

    def kept(labels: Labels) -> int:
        own = roots[id(labels)]
        return len(own) - int(np.isin(own, list(removed)).sum())

    before = count = multiplications(graph.layers, kept)
    steps: dict[int, list[int]] = {}
    while count > before * (1 - reduction):
        best: tuple[float, _Family, list[int]] | None = None
        for family in families:
            step = steps.get(id(family)) or _next(family, removed, multiple, keep_at_least)
            steps[id(family)] = step
            if step:
                score = sum(family.scores[label] for label in step) / len(step)
                if best is None or score < best[0]:
                    best = (score, family, step)
        if best is None:
            fixed = "; ".join(f"{f.name}: {f.reason}" for f in families if f.reason)
            raise CompressionError(
                f"pruning reaches a reduction of {1 - count / before:.4f} only, not {reduction}; lower it, keep_at_least "
                f"or multiple. What cannot be pruned: {fixed or 'nothing'}"
            )
        removed.update(best[2])
        steps.pop(id(best[1]))
        count = multiplications(graph.layers, kept)
    return removed, before, count


def _next(family: _Family, removed: set[int], multiple: int, keep_at_least: float) -> list[int]:
    """The channels that go together next, or none."""
    left = [label for label in family.order if label not in removed]
    size = len(left) % multiple or multiple
    remaining = len(left) - size
    if remaining < max(1, keep_at_least * len(family.labels)):
        return []
    return left[:size]


def _owners(model: nn.Module, name: str) -> list[tuple[nn.Module, str]]:
    """Every module that holds a tensor, and under which name."""
    path, _, last = name.rpartition(".")
    tensor = getattr(model.get_submodule(path), last)
    return [
        (module, key)
        for module in model.modules()
        for held in (module._parameters, module._buffers)
        for key, value in held.items()
        if value is tensor
    ]


def _rebuild(model: nn.Module, kept: dict[str, dict[int, np.ndarray[tuple[int], np.dtype[np.intp]]]]) -> None:
    """Cut every tensor, and tell its module the new sizes."""
    touched: list[nn.Module] = []
    for name, dims in kept.items():
        owners = _owners(model, name)
        tensor = getattr(*owners[0])
        smaller = tensor.detach()
        for dimension, positions in dims.items():
            smaller = smaller.index_select(dimension, torch.from_numpy(positions).to(tensor.device))
        smaller = smaller.clone(memory_format=torch.contiguous_format)
        if isinstance(tensor, nn.Parameter):
            smaller = nn.Parameter(smaller, requires_grad=tensor.requires_grad)
        for module, key in owners:
            setattr(module, key, smaller)
            touched.append(module)
    for module in touched:
        _resize(module)


def _resize(module: nn.Module) -> None:
    if isinstance(module, nn.modules.conv._ConvNd):
        if module.groups > 1:
            module.groups = module.in_channels = module.out_channels = len(module.weight)
        else:
            module.out_channels, module.in_channels = module.weight.shape[:2]
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._BatchNorm):
        assert module.running_mean is not None
        module.num_features = len(module.running_mean)


def _check(
    model: nn.Module,
    smaller: nn.Module,
    kept: dict[str, dict[int, np.ndarray[tuple[int], np.dtype[np.intp]]]],
    examples: tuple[torch.Tensor, ...],
) -> None:
    """Refuse a network that is not the original with the removed channels unread.

    Raises:
        CompressionError: ``forward`` counts channels in a way that the graph does not show.
    """
    silenced = copy.deepcopy(model)
    with torch.no_grad():
        for name, dims in kept.items():
            for dimension in (d for d in dims if d == 1):
                tensor = getattr(*_owners(silenced, name)[0])
                mask = torch.zeros(tensor.shape[dimension])
                mask[torch.from_numpy(dims[dimension])] = 1
                tensor.mul_(
                    mask.reshape([-1 if d == dimension else 1 for d in range(tensor.ndim)]).to(tensor)
                )
        wanted = _outputs(silenced, examples)
        try:
            found = _outputs(smaller, examples)
        except (RuntimeError, ValueError, IndexError) as error:
            raise CompressionError(
                f"the pruned module does not run ({str(error).splitlines()[0]}); its forward has a number of channels "
                "written into it: compute it from the tensor's shape, or name the module in keep"
            ) from error
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape or (a - b).abs().max() > TOLERANCE * a.abs().max().clamp(min=1e-6):
            raise CompressionError(
                "the pruned module computes something else than the original without the removed channels; its forward "
                "depends on the numbers of channels: name the modules in keep"
            )


def _outputs(model: nn.Module, examples: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    leaves: Callable[..., list[object]] = torch.utils._pytree.tree_leaves
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        return [x for x in leaves(model(*examples)) if isinstance(x, torch.Tensor)]
    finally:
        for module, training in modes.items():
            module.training = training
