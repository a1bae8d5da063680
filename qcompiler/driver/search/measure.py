"""What each layer costs on the target in each precision, and what conversions between them cost, measured here.

Four bundles are compiled and profiled in turns: all layers in integers, all in float, and two in which layers of the
one and the other precision alternate, so that about every tensor is converted in one of them.
"""

from __future__ import annotations

import re
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.fx import Node

from qcompiler import runtime
from qcompiler.config import CompileConfig
from qcompiler.driver.compile import Calibration, build, quantized_program
from qcompiler.driver.machines import machine_of
from qcompiler.driver.search.solve import Change, Choice, Costs
from qcompiler.driver.tuning.apply import TunedScheduler
from qcompiler.errors import SearchError
from qcompiler.quantization.layers import LAYER
from qcompiler.quantization.network import Network
from qcompiler.quantization.plan import PRECISIONS, Plan, Precision
from qcompiler.report import progress as progress_bar
from qcompiler.targets import registry
from qcompiler.targets.base import Target
from qcompiler.targets.host import read_host

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


@dataclass(frozen=True)
class Compiler:
    """A model and how it is compiled, but for the plan.

    Attributes:
        program: the float program.
        calibration: as of :func:`~qcompiler.driver.compile.compile_model`.
        config: the options; their plan is replaced.
        target: what to compile for.
        scheduler: gives the kernels their schedules.
    """

    program: ExportedProgram
    calibration: Calibration
    config: CompileConfig
    target: Target
    scheduler: TunedScheduler

    def quantized(self, plan: Plan) -> ExportedProgram:
        """The program in PT2E form by a plan."""
        with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
            path = Path(folder) / "plan.json"
            plan.save(path)
            config = replace(self.config, plan=path)
            return quantized_program(self.program, self.target, config, self.calibration)[0]


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


def plan_of(network: Network, choice: Choice) -> Plan:
    """A choice as a plan; what only moves values is not in it."""
    layers = {site.name: p for site, p in zip(network.sites, choice, strict=True) if not site.moves}
    return Plan(layers)


def settled(network: Network, wanted: Sequence[Precision]) -> Choice:
    """What a plan of these precisions becomes: as ``quantization.selection`` decides.

    What cannot begin integer arithmetic is in float where none of its inputs is in integers, and what moves values
    follows its neighbours.
    """
    integer = [p == "int8" and not site.moves for p, site in zip(wanted, network.sites, strict=True)]
    while True:
        idle = [
            s
            for s, site in enumerate(network.sites)
            if integer[s]
            and site.kind not in ("conv2d", "linear")
            and not any(integer[k] for k in network.origins(s))
            and not (site.kind == "avg_pool2d" and any(integer[k] for k in network.consumers(s)))
        ]
        if not idle:
            break
        for s in idle:
            integer[s] = False
    for s, site in enumerate(network.sites):
        if site.moves:
            integer[s] = any(integer[k] for k in (*network.origins(s), *network.consumers(s)))
    return tuple("int8" if i else "fp32" for i in integer)


def alternating(network: Network, first: Precision) -> Choice:
    """Each layer in the other precision than most of what it reads; ``first`` where the model begins."""
    other: dict[Precision, Precision] = {"int8": "fp32", "fp32": "int8"}
    depth: list[int] = []
    for s, _ in enumerate(network.sites):
        depth.append(1 + max((depth[k] for k in network.origins(s)), default=-1))
    return settled(network, [first if d % 2 == 0 else other[first] for d in depth])


def check_here(target: Target) -> None:
    """Refuses a target whose bundles cannot run here, before minutes of work rather than after.

    Raises:
        SearchError: the machine is of another architecture, or lacks features.
    """
    host = read_host()
    missing = [feature for feature in target.required_features if feature not in host.features]
    if host.machine != machine_of(target.family).name or missing:
        lack = f"it lacks {missing[0]}" if missing else f"this is {host.machine}"
        raise SearchError(
            f"layers are measured on the target, and {target.name} cannot run on this machine ({lack}); do it on such a "
            "machine, or for --target native"
        )


def measure_costs(
    compiler: Compiler,
    network: Network,
    noise: Sequence[Mapping[Precision, float]],
    *,
    threads: int | None,
    progress: bool = False,
) -> tuple[Costs, dict[Precision, float]]:
    """Compiles and profiles.

    Args:
        compiler: the model.
        network: its sites.
        noise: for each site, as of :class:`~qcompiler.driver.search.solve.Costs`.
        threads: threads of a run; None for all physical cores.
        progress: show a progress bar.

    Returns:
        The costs, and the seconds of a whole run with all layers in one precision.

    Raises:
        CpuError: this machine cannot run bundles for the target.
    """
    choices: list[Choice] = [
        settled(network, ["int8"] * len(network.sites)),
        settled(network, ["fp32"] * len(network.sites)),
        alternating(network, "int8"),
        alternating(network, "fp32"),
    ]
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        models, kernels = [], []
        with progress_bar("compile", len(choices), progress) as advance:
            for k, choice in enumerate(choices):
                program = compiler.quantized(plan_of(network, choice))
                tag(program, network, choice)
                tvm_target = registry.to_tvm(compiler.target, cores=1)
                config = replace(compiler.config, embed_reference=False)
                built = build(
                    program,
                    [],
                    compiler.target,
                    tvm_target,
                    compiler.scheduler,
                    config,
                    Path(folder) / str(k),
                )
                models.append(runtime.load(built.result.bundle, threads))
                kernels.append(built.kernels)
                advance(1)
        measured = _profile(models, kernels)
    times = {"int8": measured[0].run, "fp32": measured[1].run}
    return costs_of(network, choices, measured, noise), times  # type: ignore[return-value]  # both are precisions


def costs_of(
    network: Network,
    choices: Sequence[Choice],
    measured: Sequence[Measured],
    noise: Sequence[Mapping[Precision, float]],
) -> Costs:
    """Costs from the times of bundles, of which the first is all in integers and the second all in float.

    A site's time is that in the bundle of one precision. Where a neighbour has another precision, its kernel may
    convert on the way; what it then takes longer is a cost of the tensors that it reads. What a run takes for kernels
    that are no site's is the least of all bundles.
    """
    integer, floating = measured[0].sites, measured[1].sites
    seconds: list[dict[Precision, float]] = [
        {"int8": integer.get(s, 0.0), "fp32": floating.get(s, 0.0)} for s in range(len(network.sites))
    ]
    samples: dict[tuple[int, Change], list[float]] = defaultdict(list)
    for choice, bundle in zip(choices, measured, strict=True):
        longer: dict[int, float] = defaultdict(float)
        changed = {t: change for t, change in enumerate(changes_of(network, choice)) if change}
        for s, site in enumerate(network.sites):
            borders = [t for t in site.tensors if t in changed]
            excess = bundle.sites.get(s, 0.0) - seconds[s][choice[s]]
            for t in borders:
                longer[t] += excess / len(borders)
        for t, change in changed.items():
            total = bundle.borders.get(t, 0.0) + longer[t]
            samples[t, change].append(max(0.0, total))
    changes: list[dict[Change, float]] = []
    for t, _ in enumerate(network.tensors):
        changes.append({change: float(np.mean(found)) for (k, change), found in samples.items() if k == t})
    rest = [m.run - sum(m.sites.values()) - sum(m.borders.values()) for m in measured]
    return Costs(tuple(seconds), tuple(noise), tuple(changes), max(0.0, min(rest)))


def changes_of(network: Network, choice: Choice) -> list[Change | None]:
    """For each tensor the conversion that a plan needs, or None."""
    found: list[Change | None] = []
    for tensor in network.tensors:
        before: Precision = "fp32" if tensor.producer is None else choice[tensor.producer]
        wanted = {choice[reader] for reader in tensor.readers} | ({"fp32"} if tensor.read_in_float else set())
        change: Change | None = next(
            ((before, after) for after in PRECISIONS if after in wanted and after != before), None
        )
        found.append(change)
    return found


def tag(program: ExportedProgram, network: Network, choice: Choice) -> None:
    """Name the nodes of a quantized program so that the kernels that compute them are known by their variables.

    A layer's nodes, and the quantize node of its result, are named after its site; other quantize nodes, and
    dequantize nodes that a float operator reads, after the tensor that they convert.
    """
    by_name = {site.name: s for s, site in enumerate(network.sites)}
    tensors = {t.name: k for k, t in enumerate(network.tensors)}
    outputs = {t.producer: k for k, t in enumerate(network.tensors) if t.producer is not None}
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


def _profile(
    models: Sequence[runtime.Model], kernels: Sequence[Sequence[tuple[str, tuple[str, ...]]]]
) -> list[Measured]:
    """Times of every bundle, taken in turns, so that a slow moment of the machine is one of all."""
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
        result.append(attributed(list(zip(names, calibrated(least, run), strict=True)), origins, run))
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
    calls: Sequence[tuple[str, float]], kernels: Sequence[tuple[str, tuple[str, ...]]], run: float
) -> Measured:
    """Kernel calls as times of sites and tensors: the n-th call of a kernel computes what its n-th entry names.

    A fused kernel counts for the last site that it computes, or else for the tensor that it converts.
    """
    waiting: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name, origins in reversed(kernels):
        waiting[name].append(origins)
    sites: defaultdict[int, float] = defaultdict(float)
    borders: defaultdict[int, float] = defaultdict(float)
    for name, seconds in calls:
        origins = waiting[name].pop() if waiting[name] else ()
        tags = [tagged for tagged in map(_TAG.fullmatch, origins) if tagged]
        of_sites = [int(t["index"]) for t in tags if t["kind"] == "site"]
        if of_sites:
            sites[of_sites[-1]] += seconds
        elif tags:
            borders[int(tags[-1]["index"])] += seconds
    return Measured(dict(sites), dict(borders), run)
