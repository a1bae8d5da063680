"""Times of kernels, and which layer or conversion each of them computes.

The nodes of a program are named after sites and tensors before it is compiled, and the kernels keep these names.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from qcompiler import runtime
from qcompiler.driver.search.solve import Choice
from qcompiler.passes.fuse_float import BITS
from qcompiler.quantization.layers import LAYER
from qcompiler.quantization.network import Network

ROUNDS = 16
"""Turns in which the bundles are profiled. The least of a kernel's times counts: what else runs only adds to it."""

REPEAT = 5
"""Runs of a turn that kernels are timed in, and of one measurement of a whole run."""

WHOLE_RUNS = 4
"""Measurements of a whole run in a turn: with one alone, the caches would be what the bundle before left."""

_Q = torch.ops.quantized_decomposed
_QUANTIZE = _Q.quantize_per_tensor.default
_DEQUANTIZE = _Q.dequantize_per_tensor.default

_TAG = re.compile(r"(?P<kind>site|border)(?P<index>\d+)__\d*")
"""Names of variables by which kernels are recognized; what the importer and the passes append are digits."""

_HALF = re.compile(rf"(?P<tensor>.+){BITS}\d*")
"""Names of tensors' bfloat16 forms."""


@dataclass(frozen=True)
class Measured:
    """Times of one bundle, in seconds.

    Attributes:
        sites: of the kernels of each site, by its index.
        borders: of the kernels that do nothing but convert a tensor, by its index.
        run: of a whole run.
    """

    sites: Mapping[int, float]
    borders: Mapping[int, float]
    run: float


def tag(program: ExportedProgram, network: Network, choice: Choice) -> None:
    """Name the nodes of a quantized program so that the kernels that compute them are known by their variables.

    A layer's nodes, and the quantize node of its result, are named after its site; other quantize nodes, and
    dequantize nodes that a float operator reads, after the tensor that they convert.
    """
    by_name = {site.name: s for s, site in enumerate(network.sites)}
    tensors = {t.name: k for k, t in enumerate(network.tensors)}
    outputs = _outputs(network)
    own: dict[Node, str] = {}
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        if LAYER in node.meta and node.meta[LAYER] in by_name:
            own[node] = f"site{by_name[node.meta[LAYER]]}__"
        elif node.target in (_QUANTIZE, _DEQUANTIZE):
            own[node] = _conversion(node, own, choice, tensors, outputs)
        if node in own:
            node.meta["nn_module_stack"] = {"": (own[node], "")}


def _conversion(
    node: Node,
    own: Mapping[Node, str],
    choice: Choice,
    tensors: Mapping[str, int],
    outputs: Mapping[int, int],
) -> str:
    source = node.args[0]
    assert isinstance(source, Node), node
    origin = source.args[0] if source.target is _QUANTIZE else source
    assert isinstance(origin, Node), node
    tagged = _TAG.fullmatch(own.get(origin, ""))
    if tagged is None:
        return f"border{tensors[origin.name]}__" if origin.name in tensors else node.name
    site = int(tagged["index"])
    if node.target is _QUANTIZE and choice[site] == "int8":
        return own[origin]
    return f"border{outputs[site]}__" if site in outputs else node.name


def profiled(
    network: Network,
    models: Sequence[runtime.Model],
    kernels: Sequence[Sequence[tuple[str, tuple[str, ...]]]],
) -> list[Measured]:
    """Times of every bundle, taken in turns, so that a slow moment of the machine is one of all.

    Args:
        network: the sites.
        models: bundles whose programs :func:`tag` named.
        kernels: of each, as of :class:`~qcompiler.passes.pipeline.Physical`.
    """
    inputs = [[np.zeros(spec.shape, spec.dtype) for spec in model.inputs] for model in models]
    calls: list[list[list[tuple[str, float]]]] = [[] for _ in models]
    runs: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for k, model in enumerate(models):
            calls[k].append(model.profile(*inputs[k], repeat=REPEAT))
            runs[k] += model.time(*inputs[k], number=REPEAT, repeat=WHOLE_RUNS)
    result = []
    for rounds, origins, times in zip(calls, kernels, runs, strict=True):
        run = lower_quartile(times)
        least = [min(seconds for _, seconds in turn) for turn in zip(*rounds, strict=True)]
        names = [name for name, _ in rounds[0]]
        result.append(
            attributed(network, list(zip(names, calibrated(least, run), strict=True)), origins, run)
        )
    return result


def calibrated(times: Sequence[float], run: float) -> list[float]:
    """Times of a run's calls that add up to the run.

    Around a call the profiler's clock takes about half a microsecond, much beside a small layer's kernel; between calls
    the virtual machine works, which no clock sees. Neither depends on the kernel, so each call's share of the
    difference is the same; but no time falls below zero.

    Args:
        times: seconds of each call, as profiled.
        run: seconds of a whole run, timed from outside.
    """
    left, total = sorted(times), sum(times)
    while left and (share := (total - run) / len(left)) > left[0]:
        total -= left.pop(0)
    return [max(0.0, seconds - share) for seconds in times] if left else [0.0] * len(times)


def lower_quartile(times: Sequence[float]) -> float:
    """The time that a quarter of the runs did not take longer than: near the least, and not a lucky one."""
    return float(np.quantile(np.asarray(times), 0.25))


def attributed(
    network: Network,
    calls: Sequence[tuple[str, float]],
    kernels: Sequence[tuple[str, tuple[str, ...]]],
    run: float,
) -> Measured:
    """Kernel calls as times of sites and tensors: the n-th call of a kernel computes what its n-th entry names.

    A fused kernel counts for the last site that it computes, or else for the tensor that it converts.

    Args:
        network: the sites.
        calls: names of kernels with their seconds, in the order they ran.
        kernels: names of kernels with the variables that they compute, in the same order.
        run: seconds of a whole run.
    """
    waiting: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name, origins in reversed(kernels):
        waiting[name].append(origins)
    sites: defaultdict[int, float] = defaultdict(float)
    borders: defaultdict[int, float] = defaultdict(float)
    for name, seconds in calls:
        found = [_computed(network, origin) for origin in (waiting[name].pop() if waiting[name] else ())]
        of_sites = [index for kind, index in filter(None, found) if kind == "site"]
        of_borders = [index for kind, index in filter(None, found) if kind == "border"]
        if of_sites:
            sites[of_sites[-1]] += seconds
        elif of_borders:
            borders[of_borders[-1]] += seconds
    return Measured(dict(sites), dict(borders), run)


def _computed(network: Network, origin: str) -> tuple[str, int] | None:
    """What a variable is: ``site`` or ``border``, and its index."""
    half = _HALF.fullmatch(origin)
    tagged = _TAG.fullmatch(half["tensor"] if half else origin)
    if tagged and not (half and tagged["kind"] == "site"):
        return tagged["kind"], int(tagged["index"])
    if half:  # a site's result, or a tensor with a name of its own, is converted
        index = (
            _outputs(network).get(int(tagged["index"]))
            if tagged
            else next((k for k, t in enumerate(network.tensors) if t.name == half["tensor"]), None)
        )
        return None if index is None else ("border", index)
    return None


def _outputs(network: Network) -> dict[int, int]:
    """The tensor that each site gives."""
    return {t.producer: k for k, t in enumerate(network.tensors) if t.producer is not None}
