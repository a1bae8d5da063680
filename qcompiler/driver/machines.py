"""Machines that bundles run on, under the names that the tools of packaging give them."""

from __future__ import annotations

from dataclasses import dataclass

from qcompiler.errors import BuildError


@dataclass(frozen=True)
class Machine:
    """A processor architecture under Linux with the C library that TVM's wheels need.

    Attributes:
        name: the kernel's name of it, as ``uname -m`` gives it.
        triple: zig's name of machine and C library.
        wheel_tag: platform tag of Python wheels.
        debian: Debian's name.
        multiarch: folder of its libraries under Debian.
    """

    name: str
    triple: str
    wheel_tag: str
    debian: str
    multiarch: str


_PROCESSORS = {
    "x86": Machine("x86_64", "x86_64-linux-gnu.2.28", "manylinux_2_28_x86_64", "amd64", "x86_64-linux-gnu"),
    "arm": Machine(
        "aarch64", "aarch64-linux-gnu.2.28", "manylinux_2_28_aarch64", "arm64", "aarch64-linux-gnu"
    ),
}
MACHINES = {**_PROCESSORS, "cuda": _PROCESSORS["x86"]}
"""By target family; for a GPU the machine that it is in."""


def machine_of(family: str) -> Machine:
    """The machine of a target family.

    Raises:
        BuildError: none is known.
    """
    if family not in MACHINES:
        raise BuildError(
            f"no machine is known for targets of family {family!r}; known: {', '.join(MACHINES)}"
        )
    return MACHINES[family]
