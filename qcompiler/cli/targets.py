"""``qcompile targets``: the chips that can be compiled for."""

from __future__ import annotations

from typing import Annotated

import typer

from qcompiler.cli.options import Json, Traceback, emit_json, guarded


def command(
    name: Annotated[
        str | None, typer.Argument(help="Describe this target; all if not given.", show_default=False)
    ] = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Lists the targets, or describes one; 'native' is the processor of this machine."""
    with guarded(traceback):
        from dataclasses import fields

        from qcompiler import report
        from qcompiler.targets.base import GpuTarget, Target
        from qcompiler.targets.host import read_host
        from qcompiler.targets.registry import known, resolve

        present = read_host().features
        gpu = _capability()

        def missing_for(target: Target) -> list[str]:
            """What this machine lacks of what the target needs."""
            if isinstance(target, GpuTarget):
                first = target.architectures[0]
                return (
                    [] if gpu is not None and gpu >= int(first.removeprefix("sm_")) else [f"a GPU of {first}"]
                )
            return [feature for feature in target.required_features if feature not in present]

        if name is not None:
            target = resolve(name)
            missing = missing_for(target)
            if json:
                emit_json({"target": target, "missing_features": missing})
                return
            values = {f.name: _text(getattr(target, f.name)) for f in fields(target) if f.name != "rules"}
            values["operators"] = ", ".join(sorted(target.rules.operators))
            values["runs here"] = f"no: this machine lacks {', '.join(missing)}" if missing else "yes"
            report.show(report.facts(target.name, values))
            return
        runs = {target.name: not missing_for(target) for target in known()}
        if json:
            emit_json([{"target": target, "runs_here": runs[target.name]} for target in known()])
            return
        rows = [
            (
                target.name,
                target.instruction,
                f"{target.vector_bits}",
                f"{target.macs_per_cycle}",
                target.microarchitecture,
                "yes" if runs[target.name] else "no",
            )
            for target in known()
        ]
        columns = ["name", "instruction", ">vector bits", ">MAC/cycle", "microarchitecture", "runs here"]
        report.show(
            report.table("Targets", columns, rows), "'native' stands for the processor of this machine."
        )


def _capability() -> int | None:
    """Compute capability of this machine's GPU, as 80 for 8.0; None where there is none."""
    from qcompiler.errors import GpuError
    from qcompiler.runtime.gpu import compute_capability

    try:
        return compute_capability()
    except GpuError:
        return None


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "-"
    return str(value)
