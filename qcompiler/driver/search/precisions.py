"""Which precisions a search tries, and why the chosen plan has none of one."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.config import Precision
from qcompiler.driver.kernels import has_half_floats
from qcompiler.driver.search.result import PRECISIONS
from qcompiler.driver.search.solve import Costs, Solution
from qcompiler.errors import ConfigError
from qcompiler.quantization.network import Network
from qcompiler.targets.base import Target

HALVES: tuple[Precision, ...] = ("bf16", "fp16")


def precisions_to_try(target: Target, wanted: Sequence[Precision] | None) -> tuple[Precision, ...]:
    """The precisions of a search, int8 first and fp32 last.

    Args:
        target: where the layers run.
        wanted: what the user asks for; None for int8, fp32, and floats of 16 bits that the target multiplies.

    Raises:
        ConfigError: the target has no kernels for one.
    """
    if wanted is None:
        return (
            ("int8", "bf16", "fp32")
            if has_half_floats(target) and _multiplies(target, "bf16")
            else ("int8", "fp32")
        )
    halves = [p for p in HALVES if p in wanted]
    if halves and not has_half_floats(target):
        raise ConfigError(
            f"precisions: target {target.name} has no kernels for {halves[0]}; allowed: int8,fp32"
        )
    return ("int8", *halves, "fp32")


def remarks(
    target: Target, network: Network, costs: Costs, front: Sequence[Solution], chosen: Solution
) -> tuple[str, ...]:
    """For each float of 16 bits that a plan does not have, the reason.

    Args:
        target: where the layers run.
        network: the sites.
        costs: what they cost.
        front: the plans that there were to choose from.
        chosen: the plan.
    """
    found = []
    for precision in HALVES:
        if precision in chosen.choice:
            continue
        times = [t for t in costs.seconds if precision in t]
        if not has_half_floats(target):
            found.append(f"{precision} was not tried: target {target.name} has no kernels for it")
        elif not times:
            asked = ",".join(p for p in PRECISIONS if p in ("int8", "fp32", precision))
            why = (
                "it was not asked for"
                if _multiplies(target, precision)
                else f"target {target.name} has no instruction that multiplies it, so it makes weights smaller and "
                "nothing faster"
            )
            found.append(f"{precision} was not tried: {why}; --precisions {asked} tries it")
        else:
            faster = sum(t[precision] < t["fp32"] for t in times)
            plans = sum(precision in solution.choice for solution in front)
            found.append(
                f"{precision} is not in the chosen plan, and in {plans} of the front's {len(front)}: it is faster than fp32 "
                f"in {faster} of {len(times)} layers, and faster than int8 in {sum(t[precision] < t['int8'] for t in times)}"
            )
    return tuple(found)


def _multiplies(target: Target, precision: Precision) -> bool:
    return precision == "bf16" and target.bf16_macs_per_cycle > 0
