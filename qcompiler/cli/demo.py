"""``qcompile demo``: the whole way, on a network that is trained on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qcompiler.cli.options import Json, ProgressOption, Traceback, emit_json, guarded


def command(
    output: Annotated[Path, typer.Option(help="Folder to write the bundle to.")] = Path("demo-bundle"),
    target: Annotated[str, typer.Option(help="Chip to compile for.")] = "native",
    progress: ProgressOption = True,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Trains a small network on handwritten digits, compiles it, and compares it with PyTorch."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.demo import demo
        from qcompiler.errors import VerificationError

        result = demo(output, target=target, progress=progress)
        if json:
            emit_json(result)
        else:
            accuracy = result.evaluation
            values = {
                "test images": str(accuracy.samples),
                "accuracy, float": report.percent(accuracy.float_top1),
                "accuracy, int8": report.percent(accuracy.top1),
                "same class": report.percent(accuracy.agreement),
                "against the reference": result.verification.fault
                or f"equal in every bit, {result.verification.samples} images",
            }
            for timing in result.timings.timings:
                slower = "" if timing.ratio in (None, 1.0) else f" ({timing.ratio:.1f} times ours)"
                values[f"latency, {timing.engine} {timing.dtype}"] = (
                    timing.absent or f"{report.milliseconds(timing.median)}{slower}"
                )
            values["size of the library"] = report.size(result.library_bytes)
            values["size with the runtime"] = report.size(result.bundle_bytes)
            values["bundle"] = str(result.bundle.absolute())
            report.show(
                report.facts("A small network on handwritten digits, one image a run, one thread", values),
                f"Look into it with: qcompile inspect {output}; qcompile profile {output}",
            )
        if result.verification.fault:
            raise VerificationError(result.verification.fault)
