"""Links TVM's objects into a shared library with the linker of the ``ziglang`` wheel; no system compiler is
used.

The linker is called by itself, not through ``zig cc``: the objects need no start files, and the compiler
driver would spend twenty seconds of its first call on building a C library that they do not use.
"""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.driver.zig import run_zig

_OPTIONS = (
    "-shared",
    "--strip-debug",  # the debug records hold paths of the build; the symbol table stays, for profilers
    "--build-id=none",
    "--hash-style=gnu",
    "-z",
    "noexecstack",
)


def link_shared(output: str, objects: Sequence[str], options: Sequence[str] | None = None) -> None:
    """Links ``objects`` into the shared library ``output``; the ``fcompile`` of TVM's ``export_library``.

    Functions of TVM's runtime and of the C library stay undefined; the process that loads the library has
    them. Equal objects give equal files.

    Args:
        output: path of the library to write.
        objects: paths of object files of one architecture, whichever it is.
        options: further options of the linker.

    Raises:
        BuildError: ``ziglang`` is not installed, or the linker failed; its own words are in the message.
    """
    run_zig("ld.lld", [*_OPTIONS, *(options or ()), "-o", output, *objects], f"linking {output}")


# Attributes by which TVM asks a linker function for the kind of file it makes.
link_shared.output_format = "so"  # type: ignore[attr-defined]
link_shared.object_format = "o"  # type: ignore[attr-defined]
