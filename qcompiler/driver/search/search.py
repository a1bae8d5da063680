"""Searches a plan of precisions that keeps promises on accuracy and latency, and measures whether it does."""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from torch.export import ExportedProgram

from qcompiler import runtime
from qcompiler.config import CompileConfig, Precision
from qcompiler.driver.data import Samples, read_samples
from qcompiler.driver.quantized import batches_of, optimization_records, program_of
from qcompiler.driver.run import run_all
from qcompiler.driver.search.accuracy import Judge, Sensitivity, decibels, sensitivities
from qcompiler.driver.search.attribute import lower_quartile
from qcompiler.driver.search.measure import Compiler, check_here, measure_costs, plan_of
from qcompiler.driver.search.precisions import precisions_to_try, remarks
from qcompiler.driver.search.result import Attempt, LayerCost, Point, SearchConfig, SearchResult
from qcompiler.driver.search.solve import Costs, Solution, cleanest, front
from qcompiler.driver.tuning.apply import TunedScheduler, open_logs
from qcompiler.errors import ConfigError, SearchError
from qcompiler.frontend import capture
from qcompiler.quantization.mixed import LayerSimulation
from qcompiler.quantization.network import Network
from qcompiler.quantization.plan import Plan
from qcompiler.quantization.quantizer import calibrate
from qcompiler.report import milliseconds, percent
from qcompiler.report import progress as progress_bar
from qcompiler.runtime import TensorSpec
from qcompiler.targets import registry

log = logging.getLogger(__name__)

ATTEMPTS = 8
"""Plans that are compiled and measured before the search gives up."""

MEASUREMENTS = 40
"""Measurements of a plan's latency, of :data:`RUNS` runs each."""

RUNS = 5


def search(
    model: str,
    config: CompileConfig,
    goal: SearchConfig,
    *,
    calibration: Path,
    output: Path,
    data: Path | None = None,
) -> SearchResult:
    """Searches a plan, compiles and measures it, and writes it to a file.

    Of the plans that keep the promises it is the fastest one on the front (``max_drop``), or the one with the least
    noise (``max_latency``). Where a plan, compiled, misses a promise, the search goes on with the next one, under a
    tighter bound; every plan that was tried is in the result.

    Args:
        model: a ``.pt2`` archive or ``package.module:function``, in float.
        config: how to compile; its plan must be None.
        goal: the promises.
        calibration: ``.npz`` with an array an input.
        output: the plan's file.
        data: ``.npz`` with an array an input that accuracy is measured on, and labels; the calibration data without
            labels if None.

    Raises:
        ConfigError: the model is quantized already, or has no classes although ``max_drop`` is asked for.
        CpuError: this machine cannot run what is compiled for the target.
        SearchError: no plan keeps the promises; the message says how near the best one came.
        QCompilerError: the model or data cannot be used.
    """
    if config.plan is not None or config.gate:
        raise ConfigError("a search makes a plan itself; leave plan and gate out")
    target = registry.resolve(config.target)
    check_here(target)
    program = program_of(model, None, config)
    if capture.is_quantized(program):
        raise ConfigError(f"model {model} is quantized already; a search needs the float model")
    precisions = precisions_to_try(target, goal.precisions)
    batches = batches_of(program, calibration)
    calibrated = calibrate(program, target.rules, batches, config)
    simulation = LayerSimulation(calibrated, target.bf16_macs_per_cycle > 0)
    if not simulation.layers:
        raise SearchError(f"model {model} has no layer with an integer kernel; there is nothing to search")
    samples = _samples(program, data, calibration, goal.limit)
    judge = Judge(simulation, samples)
    if goal.max_drop is not None and judge.criterion is None:
        raise ConfigError("max_drop needs classes, and the first output has no class axis; give max_latency")
    with progress_bar("sensitivity", 1, config.progress) as advance:
        sensitive = sensitivities(simulation, samples, [p for p in precisions if p != "fp32"])
        advance(1)
    scheduler = TunedScheduler(open_logs(target, config), registry.to_tvm(target, cores=1))
    compiler = Compiler(program, batches, config, target, scheduler)
    network = simulation.network
    noise = _noise(network, precisions, sensitive)
    costs, runs = measure_costs(
        compiler,
        network,
        noise,
        threads=goal.threads,
        precisions=precisions,
        progress=config.progress,
    )
    finder = _Finder(simulation, judge, network, costs)
    with progress_bar("front", goal.points, config.progress) as advance:
        points = []
        for solution in front(network, costs, goal.points):
            points.append((solution, finder.point(solution)))
            advance(1)
    attempts: list[Attempt] = []
    threads = 0
    chosen: Solution | None = None
    for candidate in finder.candidates(goal, points, attempts):
        found, threads = _attempt(compiler, judge, samples, goal, network, candidate, finder.point(candidate))
        attempts.append(found)
        if found.missed is None:
            chosen = candidate
            break
        log.warning("a plan of the search missed its promise, the search goes on: %s", found.missed)
        if len(attempts) == ATTEMPTS:
            break
    if chosen is None:
        raise SearchError(_failure(goal, attempts, [p for _, p in points]))
    _plan(network, chosen, attempts[-1], compiler, threads).save(output)
    return SearchResult(
        judge.criterion, judge.float_top1, samples.count, threads, runs,
        _layer_costs(network, costs, sensitive, chosen), tuple(p for _, p in points), tuple(attempts), output,
        remarks(target, network, costs, [s for s, _ in points], chosen), optimization_records(calibrated.effects),
    )  # fmt: skip


def _noise(
    network: Network, precisions: Sequence[Precision], sensitive: Mapping[tuple[str, Precision], Sensitivity]
) -> list[dict[Precision, float]]:
    """For each site the noise of each precision that it may have."""
    result: list[dict[Precision, float]] = []
    for site in network.sites:
        alone = {p: sensitive[site.name, p].noise for p in precisions if (site.name, p) in sensitive}
        # Numbers beyond float16's largest make a layer useless.
        finite = {p: noise for p, noise in alone.items() if p == "int8" or math.isfinite(noise)}
        result.append({"int8": 0.0, **finite, "fp32": 0.0})
    return result


class _Finder:
    """Points of the front, and which plans to try."""

    def __init__(self, simulation: LayerSimulation, judge: Judge, network: Network, costs: Costs) -> None:
        self.simulation, self.judge, self.network, self.costs = simulation, judge, network, costs
        self._points: dict[tuple[str, ...], Point] = {}

    def point(self, solution: Solution) -> Point:
        """A solution as a point, its drop simulated; each plan once."""
        known = self._points.get(solution.choice)
        if known is None:
            plan = plan_of(self.network, solution.choice).layers
            drop = None
            if self.judge.criterion is not None:
                drop = self.judge.drop(self.judge.simulated(self.simulation, plan))
            known = self._points[solution.choice] = Point(
                {name: precision for name, precision in plan.items() if precision != "int8"},
                solution.seconds,
                decibels(solution.noise),
                drop,
            )
        return known

    def candidates(
        self, goal: SearchConfig, points: list[tuple[Solution, Point]], attempts: list[Attempt]
    ) -> Iterator[Solution]:
        """Plans that promise what is asked for, each to be tried if those before it missed it."""
        if goal.max_latency is None:
            yield from (s for s, point in points if _within(point.drop, goal.max_drop))
            return
        bound, tried = goal.max_latency, set()
        while (solution := cleanest(self.network, self.costs, bound)) is not None:
            if not _within(self.point(solution).drop, goal.max_drop):
                return  # what is slower is allowed no longer, and what is faster has more noise
            if solution.choice not in tried:
                tried.add(solution.choice)
                yield solution
                measured = attempts[-1].seconds
                # What is measured is to costs as it was for this plan.
                bound = min(0.98 * bound, goal.max_latency * solution.seconds / measured)
            else:
                bound *= 0.98


def _within(drop: float | None, max_drop: float | None) -> bool:
    """Whether a drop, a fraction, is at most ``max_drop`` percentage points."""
    return max_drop is None or (drop is not None and 100 * drop <= max_drop + 1e-9)


def _samples(program: ExportedProgram, data: Path | None, calibration: Path, limit: int | None) -> Samples:
    specs = [
        TensorSpec(info.name, info.shape, str(info.dtype).removeprefix("torch."))
        for info in capture.user_inputs(program)
    ]
    samples = read_samples(data or calibration, specs, limit)
    return samples if data is not None else replace(samples, labels=None)


def _attempt(
    compiler: Compiler,
    judge: Judge,
    samples: Samples,
    goal: SearchConfig,
    network: Network,
    solution: Solution,
    promised: Point,
) -> tuple[Attempt, int]:
    """Compiles a plan and measures it; also the threads that it ran with."""
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        built = compiler.compiled(plan_of(network, solution.choice), Path(folder) / "bundle")
        model = runtime.load(built.result.bundle, goal.threads)
        outputs = run_all(model, samples)
        zeros = [np.zeros(spec.shape, spec.dtype) for spec in model.inputs]
        seconds = lower_quartile(model.time(*zeros, number=RUNS, repeat=MEASUREMENTS))
    drop, missed = judge.drop(outputs), []
    if not _within(drop, goal.max_drop):
        missed.append(f"drop {percent(drop)}, promised {percent(promised.drop)}, allowed {goal.max_drop} %")
    if goal.max_latency is not None and seconds > goal.max_latency:
        missed.append(
            f"latency {milliseconds(seconds)}, promised {milliseconds(promised.seconds)}, allowed "
            f"{milliseconds(goal.max_latency)}"
        )
    attempt = Attempt(promised, seconds, drop, judge.sqnr_db(outputs), "; ".join(missed) or None)
    return attempt, model.threads


def _failure(goal: SearchConfig, attempts: list[Attempt], points: list[Point]) -> str:
    wanted = [
        *([f"a drop of at most {goal.max_drop} points"] if goal.max_drop is not None else []),
        *([f"at most {milliseconds(goal.max_latency)}"] if goal.max_latency is not None else []),
    ]
    if attempts:
        best = attempts[-1]
        near = f"{len(attempts)} plans were compiled and measured; the last one missed it: {best.missed}"
    else:
        drops = [p.drop for p in points if p.drop is not None]
        near = f"the fastest plan promises {milliseconds(points[0].seconds)}" + (
            f" at a drop of {percent(points[0].drop)}, the least drop of any is {percent(min(drops))}"
            if drops
            else ""
        )
    return f"no plan keeps {' and '.join(wanted)}: {near}; allow more, or improve the model's quantization"


def _plan(network: Network, solution: Solution, attempt: Attempt, compiler: Compiler, threads: int) -> Plan:
    def figures(seconds: float, drop: float | None) -> dict[str, float | None]:
        return {
            "milliseconds": round(seconds * 1e3, 6),
            "drop_in_points": None if drop is None else round(100 * drop, 4),
        }

    notes = {
        "target": compiler.target.name,
        **asdict(compiler.config.methods),
        **compiler.config.quantization,
        "threads": threads,
        "promised": figures(attempt.promised.seconds, attempt.promised.drop),
        "measured": figures(attempt.seconds, attempt.drop),
    }
    return replace(plan_of(network, solution.choice), notes=notes)


def _layer_costs(
    network: Network,
    costs: Costs,
    sensitive: Mapping[tuple[str, Precision], Sensitivity],
    chosen: Solution,
) -> tuple[LayerCost, ...]:
    found = []
    for s, site in enumerate(network.sites):
        if not site.moves:
            ratios: dict[Precision, float] = {}
            drops: dict[Precision, float | None] = {}
            for precision in costs.seconds[s]:
                if precision != "fp32":
                    ratios[precision] = sensitive[site.name, precision].sqnr_db
                    drops[precision] = sensitive[site.name, precision].drop
            found.append(LayerCost(site.name, site.kind, costs.seconds[s], ratios, drops, chosen.choice[s]))
    return tuple(found)
