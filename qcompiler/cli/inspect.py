"""``qcompile inspect``: what a bundle holds, without loading it."""

from __future__ import annotations

from collections.abc import Sequence

from qcompiler.cli.options import (
    Bundle,
    Json,
    RequireSignature,
    Traceback,
    emit_json,
    guarded,
    left_in_float,
    optimizations,
    shape,
)


def command(
    bundle: Bundle,
    require_signature: RequireSignature = None,
    json: Json = False,
    traceback: Traceback = False,
) -> None:
    """Shows what a bundle holds: tensors, layers and their certificates, what stayed in float, files."""
    with guarded(traceback):
        from qcompiler import report
        from qcompiler.driver.zeros import describe_zeros
        from qcompiler.runtime.bundle import verify
        from qcompiler.runtime.signature import SIGNATURE_NAME

        manifest = verify(bundle, require_signature=require_signature)
        if json:
            emit_json(manifest)
            return
        bytes_of = {name: (bundle / name).stat().st_size for name in manifest.files}
        versions = manifest.versions
        parts = [
            report.facts(
                f"Bundle {bundle}",
                {
                    "target": manifest.target_name,
                    "needs": " ".join(manifest.required_features) or "-",
                    "made with": ", ".join(
                        f"{name} {getattr(versions, name)}" for name in ("qcompiler", "tvm", "torch")
                    ),
                    "GPU code": _gpu_code(manifest.architectures),
                    "size": report.size(sum(bytes_of.values())),
                    "schedules": report.schedules(
                        [layer.schedule for layer in manifest.layers], manifest.tuned_threads
                    ),
                    "format": str(manifest.format_version),
                    "signed": "yes" if (bundle / SIGNATURE_NAME).is_file() else "no",
                },
            ),
            report.table(
                "Tensors",
                ["kind", "name", "dtype", "shape", ">scale", ">zero point"],
                [
                    (
                        kind,
                        spec.name,
                        spec.dtype,
                        shape(spec.shape),
                        "-" if spec.scale is None else f"{spec.scale:.6g}",
                        "-" if spec.zero_point is None else str(spec.zero_point),
                    )
                    for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs))
                    for spec in specs
                ],
            ),
            report.table(
                "Layers",
                [
                    "name",
                    "operator",
                    "arithmetic",
                    "output",
                    ">MMAC",
                    ">accumulator up to",
                    "instruction",
                    "schedule",
                    "reason if not",
                ],
                [
                    (
                        layer.name,
                        layer.operator,
                        layer.arithmetic or layer.dtype,
                        shape(layer.output_shape),
                        f"{layer.macs / 1e6:.2f}" if layer.macs else "-",
                        "-" if layer.accumulator_bound is None else f"{layer.accumulator_bound:,}",
                        f"{layer.instruction} x {layer.instruction_count}" if layer.instruction else "-",
                        layer.schedule or "-",
                        layer.reason or "",
                    )
                    for layer in manifest.layers
                ],
            ),
            *filter(None, [describe_zeros(manifest.layers, manifest.target_name)]),
            *optimizations(manifest.optimizations),
            *(left_in_float(manifest.float_operators) or ["Left in float: nothing"]),
            report.table(
                "Files",
                ["file", ">size", "SHA-256"],
                [(name, report.size(bytes_of[name]), digest) for name, digest in manifest.files.items()],
            ),
        ]
        report.show(*parts)


def _gpu_code(architectures: Sequence[str]) -> str:
    """What a GPU can run of a bundle."""
    if not architectures:
        return "-"
    virtual = architectures[-1].replace("sm_", "compute_")
    return f"machine code for {', '.join(architectures)}; PTX of {virtual} for later ones"
