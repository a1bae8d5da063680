"""The plan that is best for given costs, exactly: an integer program.

A binary ``x[s, p]`` says that site s has precision p, one of them a site. A conversion of tensor t from precision a to
b costs once, however many read the result: ``e[t, a, b] >= x[producer, a] + x[reader, b] - 1`` for every reader; e needs
no integrality, because nothing but its cost pulls at it. The rules that the quantizer follows are constraints:

- What only moves values is in integers exactly where something that it moves values from or to is.
- What cannot begin integer arithmetic needs an input in integers.
- A site has one of the precisions that its costs name: int8 and fp32 always, others where it has kernels for them.

Time and noise are sums, so the program is linear; both are exact optima of the model that :class:`Costs` is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from qcompiler.config import Precision
from qcompiler.errors import SearchError
from qcompiler.quantization.network import Network

Choice = tuple[Precision, ...]
"""A precision for each site."""

Change = tuple[Precision, Precision]
"""From one precision to another."""

_SLACK = 1e-9
"""Relative slack of a bound, for the sums' rounding."""

_SCALE = 1e4
"""What an objective's or a bound's coefficients are scaled to, together: the solver's tolerances are absolute, 1e-6."""


@dataclass(frozen=True)
class Costs:
    """What precisions cost.

    Attributes:
        seconds: for each site, the time of its kernel, by the precisions that it may have: int8, fp32 and any others.
        noise: for each site, what it adds to the model's output, by precision: energy of the noise relative to the
            signal's.
        changes: for each tensor, the seconds of a conversion between precisions.
        fixed: seconds that every plan takes.
    """

    seconds: tuple[Mapping[Precision, float], ...]
    noise: tuple[Mapping[Precision, float], ...]
    changes: tuple[Mapping[Change, float], ...]
    fixed: float = 0.0


@dataclass(frozen=True)
class Solution:
    """A plan with what the costs promise.

    Attributes:
        choice: a precision for each site.
        seconds: of a run.
        noise: at the output, relative to the signal.
    """

    choice: Choice
    seconds: float
    noise: float


def evaluate(network: Network, costs: Costs, choice: Choice) -> Solution:
    """What the costs promise of a choice."""
    seconds = costs.fixed + sum(costs.seconds[s][p] for s, p in enumerate(choice))
    for tensor, changes in zip(network.tensors, costs.changes, strict=True):
        before: Precision = "fp32" if tensor.producer is None else choice[tensor.producer]
        wanted = {choice[reader] for reader in tensor.readers}
        if tensor.read_in_float:
            wanted.add("fp32")
        seconds += sum(changes.get((before, after), 0.0) for after in wanted if after != before)
    return Solution(choice, seconds, sum(costs.noise[s][p] for s, p in enumerate(choice)))


def allowed(network: Network, choice: Choice) -> bool:
    """Whether the quantizer would follow a choice: the rules at the head of this file."""
    integer = [p == "int8" for p in choice]
    for s, site in enumerate(network.sites):
        before = any(integer[k] for k in network.origins(s))
        after = any(integer[k] for k in network.consumers(s))
        if site.moves:
            if integer[s] != (before or after):
                return False
        elif integer[s] and site.kind == "avg_pool2d":
            if not (before or after):
                return False
        elif integer[s] and not site.begins and not before:
            return False
    return True


class _Program:
    """Rows of the constraints, and where each variable stands."""

    def __init__(self, network: Network, costs: Costs) -> None:
        self.network, self.costs = network, costs
        self.site = {
            (s, p): k
            for k, (s, p) in enumerate((s, p) for s, times in enumerate(costs.seconds) for p in times)
        }
        self.change: dict[tuple[int, Change], int] = {}
        for t, changes in enumerate(costs.changes):
            for change, seconds in changes.items():
                if seconds > 0:
                    self.change[t, change] = len(self.site) + len(self.change)
        self.size = len(self.site) + len(self.change)
        self.rows: list[tuple[dict[int, float], float, float]] = []
        for s, times in enumerate(costs.seconds):
            self.add({self.site[s, p]: 1.0 for p in times}, 1, 1)
        self._rules()
        for (t, change), column in self.change.items():
            self._conversion(t, change, column)

    def add(self, row: Mapping[int, float], low: float, high: float) -> None:
        self.rows.append((dict(row), low, high))

    def _rules(self) -> None:
        for s, site in enumerate(self.network.sites):
            own = self.site[s, "int8"]
            origins = [self.site[k, "int8"] for k in self.network.origins(s)]
            consumers = [self.site[k, "int8"] for k in self.network.consumers(s)]
            if site.moves:
                for other in {*origins, *consumers}:
                    self.add({own: 1.0, other: -1.0}, 0, 1)
            if site.moves or site.kind == "avg_pool2d":
                self.add({**dict.fromkeys((*origins, *consumers), -1.0), own: 1.0}, -np.inf, 0)
            elif not site.begins:
                self.add({**dict.fromkeys(origins, -1.0), own: 1.0}, -np.inf, 0)

    def _conversion(self, t: int, change: Change, column: int) -> None:
        tensor, (before, after) = self.network.tensors[t], change
        row, high = {column: -1.0}, 1.0
        if tensor.producer is None and before == "fp32":
            high -= 1.0  # its producer is in float in any case
        elif (tensor.producer, before) in self.site:
            row[self.site[tensor.producer, before]] = 1.0  # type: ignore[index]  # it is in there
        else:
            return
        for reader in tensor.readers:
            if (reader, after) in self.site:
                self.add({**row, self.site[reader, after]: 1.0}, -np.inf, high)
        if tensor.read_in_float and after == "fp32":
            self.add(row, -np.inf, high - 1.0)

    def seconds(self) -> dict[int, float]:
        row = {k: self.costs.seconds[s][p] for (s, p), k in self.site.items()}
        return {**row, **{k: self.costs.changes[t][change] for (t, change), k in self.change.items()}}

    def noise(self) -> dict[int, float]:
        return {k: self.costs.noise[s][p] for (s, p), k in self.site.items()}

    def bound(self, row: Mapping[int, float], bound: float) -> None:
        unit = (sum(row.values()) or 1.0) / _SCALE
        self.add({k: v / unit for k, v in row.items()}, -np.inf, bound / unit * (1 + _SLACK))

    def solve(self, objective: Mapping[int, float]) -> Choice | None:
        unit = (sum(objective.values()) or 1.0) / _SCALE
        c = np.zeros(self.size)
        for column, value in objective.items():
            c[column] = value / unit
        entries = [(r, k, v) for r, (row, _, _) in enumerate(self.rows) for k, v in row.items()]
        i, j, values = (np.array(column) for column in zip(*entries, strict=True))
        matrix = csr_array((values, (i, j)), shape=(len(self.rows), self.size))
        integrality = np.zeros(self.size)
        integrality[: len(self.site)] = 1
        result = milp(
            c,
            constraints=LinearConstraint(matrix, [r[1] for r in self.rows], [r[2] for r in self.rows]),
            bounds=Bounds(0, 1),
            integrality=integrality,
            options={"mip_rel_gap": 0.0},
        )
        if result.status == 2:  # infeasible
            return None
        if result.x is None:
            raise SearchError(f"the integer program was not solved: {result.message}; report this as a bug")
        return tuple(
            max(times, key=lambda p: result.x[self.site[s, p]]) for s, times in enumerate(self.costs.seconds)
        )


def fastest(network: Network, costs: Costs, noise: float | None = None) -> Solution | None:
    """The fastest plan with at most ``noise``, of equally fast ones the least noisy; None if there is none."""
    program = _Program(network, costs)
    if noise is not None:
        program.bound(program.noise(), noise)
    choice = program.solve(program.seconds())
    return None if choice is None else _better(network, costs, choice, program, program.noise())


def cleanest(network: Network, costs: Costs, seconds: float) -> Solution | None:
    """The plan with the least noise that takes at most ``seconds``, of equal ones the fastest; None if there is none."""
    program = _Program(network, costs)
    program.bound(program.seconds(), seconds - costs.fixed)
    choice = program.solve(program.noise())
    return None if choice is None else _better(network, costs, choice, program, program.seconds())


def _better(
    network: Network, costs: Costs, choice: Choice, program: _Program, second: Mapping[int, float]
) -> Solution:
    """Of the plans that are as good as ``choice`` in both respects, the best in the ``second``."""
    first = evaluate(network, costs, choice)
    program.bound(program.seconds(), first.seconds - costs.fixed)
    program.bound(program.noise(), first.noise)
    choice = program.solve(second) or choice  # at the edge of the tolerances the solver may miss its own plan
    found = evaluate(network, costs, choice)
    return found if found.seconds <= first.seconds and found.noise <= first.noise else first


def front(network: Network, costs: Costs, points: int) -> list[Solution]:
    """Plans of which none is better than another in both time and noise, the fastest first.

    Each is the fastest plan of all with at most its noise. The bounds on the noise are evenly spread over its
    decibels, between the fastest plan's and that of the least noisy layer alone.

    Args:
        points: plans to look for; fewer come back where several bounds have the same optimum.
    """
    first = fastest(network, costs)
    assert first is not None  # all in float is always allowed
    quiet = min((n for noise in costs.noise for n in noise.values() if n > 0), default=0.0)
    found = [first]
    between = np.geomspace(first.noise, quiet, points)[1:].tolist() if first.noise > quiet > 0 else []
    for bound in (*between, 0.0):
        if bound < found[-1].noise:
            solution = fastest(network, costs, bound)
            if solution is not None and solution.noise < found[-1].noise:
                while found and solution.seconds <= found[-1].seconds:
                    found.pop()
                found.append(solution)
    return found
