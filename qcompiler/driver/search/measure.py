"""What each layer costs on the target in each precision, and what conversions between them cost, measured here.

For every precision a bundle is compiled that has all layers in it, and for every ordered pair of precisions one in which
layers of the one and the other alternate, so that about every tensor is converted in one of them. All are profiled in
turns.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations
from pathlib import Path

import numpy as np
from torch.export import ExportedProgram

from qcompiler import runtime
from qcompiler.config import CompileConfig, Precision
from qcompiler.driver.compile import Built, build
from qcompiler.driver.machines import machine_of
from qcompiler.driver.quantized import Calibration, quantized_program
from qcompiler.driver.search.attribute import Measured, profiled, tag
from qcompiler.driver.search.solve import Change, Choice, Costs
from qcompiler.driver.tuning.apply import TunedScheduler
from qcompiler.errors import GpuError, SearchError
from qcompiler.quantization.network import Network, Site
from qcompiler.quantization.operator_classes import MATMUL_CLASSES
from qcompiler.quantization.plan import Plan
from qcompiler.report import progress as progress_bar
from qcompiler.runtime.gpu import compute_capability
from qcompiler.targets import registry
from qcompiler.targets.base import GpuTarget, Target
from qcompiler.targets.host import read_host


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

    def compiled(
        self, plan: Plan, output: Path, adapt: Callable[[ExportedProgram], None] | None = None
    ) -> Built:
        """A bundle by a plan, without the reference.

        Args:
            plan: the plan.
            output: where to write the bundle.
            adapt: changes the program in PT2E form before it is compiled.
        """
        with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
            path = Path(folder) / "plan.json"
            plan.save(path)
            config = replace(self.config, plan=path, embed_reference=False)
            quantized = quantized_program(self.program, self.target, config, self.calibration)
            if adapt is not None:
                adapt(quantized.program)
            tvm_target = registry.to_tvm(self.target, cores=1)
            return build(quantized, self.target, tvm_target, self.scheduler, config, output)


def plan_of(network: Network, choice: Choice) -> Plan:
    """A choice as a plan; what only moves values is not in it."""
    layers = {site.name: p for site, p in zip(network.sites, choice, strict=True) if not site.moves}
    return Plan(layers)


def precisions_of(site: Site, precisions: Sequence[Precision]) -> tuple[Precision, ...]:
    """Those of ``precisions`` that a site may have: floats of 16 bits are for convolutions and linear layers."""
    return tuple(p for p in precisions if p in ("int8", "fp32") or site.kind in MATMUL_CLASSES)


def settled(network: Network, wanted: Sequence[Precision]) -> Choice:
    """What a plan of these precisions becomes: as ``quantization.selection`` decides.

    What is to be in integers and cannot, is in fp32: what cannot begin integer arithmetic is in float where none of its inputs is in integers, and what moves values
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
    return tuple(
        "int8" if i else p if p != "int8" and p in precisions_of(site, (p,)) else "fp32"
        for i, p, site in zip(integer, wanted, network.sites, strict=True)
    )


def alternating(network: Network, first: Precision, second: Precision) -> Choice:
    """Each layer in the other precision than most of what it reads; ``first`` where the model begins."""
    depth: list[int] = []
    for s, _ in enumerate(network.sites):
        depth.append(1 + max((depth[k] for k in network.origins(s)), default=-1))
    return settled(network, [first if d % 2 == 0 else second for d in depth])


def check_here(target: Target) -> None:
    """Refuses a target whose bundles cannot run here, before minutes of work rather than after.

    Raises:
        SearchError: the machine is of another architecture, or lacks features or the GPU.
    """
    lack = _lack_of_gpu(target) if isinstance(target, GpuTarget) else _lack_of_processor(target)
    if lack:
        raise SearchError(
            f"layers are measured on the target, and {target.name} cannot run on this machine ({lack}); do it on such a "
            "machine, or for --target native"
        )


def _lack_of_processor(target: Target) -> str:
    host = read_host()
    missing = [feature for feature in target.required_features if feature not in host.features]
    if missing:
        return f"it lacks {missing[0]}"
    return "" if host.machine == machine_of(target.family).name else f"this is {host.machine}"


def _lack_of_gpu(target: GpuTarget) -> str:
    try:
        capability = compute_capability()
    except GpuError as error:
        return str(error)
    return "" if f"sm_{capability}" in target.architectures else f"its GPU is sm_{capability}"


def measure_costs(
    compiler: Compiler,
    network: Network,
    noise: Sequence[Mapping[Precision, float]],
    *,
    threads: int | None,
    precisions: Sequence[Precision] = ("int8", "fp32"),
    progress: bool = False,
) -> tuple[Costs, dict[Precision, float]]:
    """Compiles and profiles.

    Args:
        compiler: the model.
        network: its sites.
        noise: for each site, as of :class:`~qcompiler.driver.search.solve.Costs`.
        threads: threads of a run; None for all physical cores.
        precisions: to measure, int8 and fp32 among them.
        progress: show a progress bar.

    Returns:
        The costs, and the seconds of a whole run with all layers in one precision.

    Raises:
        CpuError: this machine cannot run bundles for the target.
    """
    whole = {p: settled(network, [p] * len(network.sites)) for p in precisions}
    choices = [*whole.values(), *(alternating(network, a, b) for a, b in permutations(precisions, 2))]
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        models, kernels = [], []
        with progress_bar("compile", len(choices), progress) as advance:
            for k, choice in enumerate(choices):
                name = partial(tag, network=network, choice=choice)
                built = compiler.compiled(plan_of(network, choice), Path(folder) / str(k), name)
                models.append(runtime.load(built.result.bundle, threads))
                kernels.append(built.kernels)
                advance(1)
        measured = profiled(network, models, kernels)
    times = {p: m.run for p, m in zip(precisions, measured, strict=False)}
    return costs_of(network, precisions, choices, measured, noise), times


def costs_of(
    network: Network,
    precisions: Sequence[Precision],
    choices: Sequence[Choice],
    measured: Sequence[Measured],
    noise: Sequence[Mapping[Precision, float]],
) -> Costs:
    """Costs from the times of bundles.

    A site's time is that in the bundle of one precision. Where a neighbour has another precision, its kernel may
    convert on the way; what it then takes longer is a cost of the tensors that it reads. What a run takes for kernels
    that are no site's is the least of all bundles.

    Args:
        network: the sites.
        precisions: of the first bundles, each of which is all in one.
        choices: the bundles' plans.
        measured: their times.
        noise: for each site, by the precisions that it may have.
    """
    whole = dict(zip(precisions, measured, strict=False))
    seconds: list[dict[Precision, float]] = [
        {p: whole[p].sites.get(s, 0.0) for p in times} for s, times in enumerate(noise)
    ]
    samples: dict[tuple[int, Change], list[float]] = defaultdict(list)
    for choice, bundle in zip(choices, measured, strict=True):
        longer: dict[int, float] = defaultdict(float)
        changed = {t: changes for t, changes in enumerate(changes_of(network, choice)) if changes}
        for s, site in enumerate(network.sites):
            borders = [t for t in site.tensors if t in changed]
            excess = bundle.sites.get(s, 0.0) - seconds[s].get(choice[s], 0.0)
            for t in borders:
                longer[t] += excess / len(borders)
        for t, changes in changed.items():
            total = bundle.borders.get(t, 0.0) + longer[t]
            for change in changes:
                samples[t, change].append(max(0.0, total) / len(changes))
    costs: list[dict[Change, float]] = [{} for _ in network.tensors]
    for (t, change), found in samples.items():
        costs[t][change] = float(np.mean(found))
    rest = [m.run - sum(m.sites.values()) - sum(m.borders.values()) for m in measured]
    return Costs(tuple(seconds), tuple(noise), tuple(costs), max(0.0, min(rest)))


def changes_of(network: Network, choice: Choice) -> list[tuple[Change, ...]]:
    """For each tensor the conversions that a plan needs."""
    found: list[tuple[Change, ...]] = []
    for tensor in network.tensors:
        before: Precision = "fp32" if tensor.producer is None else choice[tensor.producer]
        wanted = [choice[reader] for reader in tensor.readers] + (["fp32"] if tensor.read_in_float else [])
        found.append(tuple((before, after) for after in dict.fromkeys(wanted) if after != before))
    return found
