"""What a core does in a cycle."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Core:
    """A core's units.

    Attributes:
        issue: instructions a cycle.
        vector: vector instructions of the kernels' width a cycle.
        load: loads of that width a cycle.
        latency: cycles until a product can be added to again.
        in_order: a load takes the cycle of a vector instruction.
        half_loads: in order too, but loads of half of the kernels' width share the cycle of a vector instruction, and
            those of the whole width take two.
    """

    issue: int
    vector: int
    load: int
    latency: int = 4
    in_order: bool = False
    half_loads: bool = False
