"""The gate: layers whose float form is faster on this machine than their int8 form stay in float."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch.export import ExportedProgram

from qcompiler.config import CompileConfig, Precision
from qcompiler.driver.quantized import Calibration, batches_of
from qcompiler.driver.search.measure import Compiler, check_here, measure_costs, plan_of
from qcompiler.driver.search.solve import Costs, Solution, fastest
from qcompiler.driver.tuning.apply import TunedScheduler
from qcompiler.errors import ConfigError
from qcompiler.frontend import capture
from qcompiler.quantization.mixed import LayerSimulation
from qcompiler.quantization.network import Network
from qcompiler.quantization.plan import Plan
from qcompiler.quantization.quantizer import calibrate
from qcompiler.report import microseconds
from qcompiler.targets.base import Target

MARGIN = 1.03
"""How many times its measured time a float layer is taken for: within what two measurements differ, int8 stays."""


def gated(
    program: ExportedProgram,
    target: Target,
    scheduler: TunedScheduler,
    config: CompileConfig,
    calibration: Calibration,
    path: Path,
) -> tuple[CompileConfig, Calibration]:
    """The configuration with the fastest plan by measurement, whose reasons are both times of every layer in float.

    Layers are measured in a bundle that is all in integers and one that is all in float; a layer stays in float where
    that gains more than the conversions at its borders cost.

    Args:
        program: the float program.
        target: what to compile for.
        scheduler: gives the kernels their schedules.
        config: how to compile; without a plan.
        calibration: as of :func:`~qcompiler.driver.compile.compile_model`.
        path: where to write the plan.

    Returns:
        The configuration, and the calibration data as batches, which an iterable gives only once.

    Raises:
        ConfigError: the model is quantized already.
        SearchError: this machine cannot run what is compiled for the target.
    """
    if capture.is_quantized(program):
        raise ConfigError(
            "gate: the model is quantized already, so its layers have no float form; leave gate out"
        )
    check_here(target)
    batches = batches_of(program, calibration)
    network = LayerSimulation(calibrate(program, target.rules, batches, config)).network
    silent: list[Mapping[Precision, float]] = [{"int8": 0.0, "fp32": 0.0} for _ in network.sites]
    plain = replace(config, gate=False, dump_ir=None)
    compiler = Compiler(program, batches, plain, target, scheduler)
    costs, _ = measure_costs(compiler, network, silent, threads=None, progress=config.progress)
    solution = fastest(network, _slower_float(costs))
    assert solution is not None  # all in float is always allowed
    _with_reasons(network, costs, solution).save(path)
    return replace(plain, dump_ir=config.dump_ir, plan=path), batches


def _slower_float(costs: Costs) -> Costs:
    return replace(costs, seconds=tuple({**times, "fp32": MARGIN * times["fp32"]} for times in costs.seconds))


def _with_reasons(network: Network, costs: Costs, solution: Solution) -> Plan:
    reasons = {}
    for s, site in enumerate(network.sites):
        if not site.moves and solution.choice[s] != "int8":
            times = costs.seconds[s]
            alone = times["int8"] <= times["fp32"]
            reasons[site.name] = (
                f"gate: int8 {microseconds(times['int8'])}, fp32 {microseconds(times['fp32'])}"
                + (", but its neighbours are in float, and conversions cost more" if alone else "")
            )
    return replace(plan_of(network, solution.choice), reasons=reasons)
