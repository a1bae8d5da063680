"""PyTorch Inductor on int8 programs: PT2E's quantized form, lowered to oneDNN's int8 kernels ahead of time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.driver.peers.base import Made, Peer, Request, Stage
from qcompiler.driver.peers.pytorch import probe

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_COMMON = {
    "compiler": "torch._inductor.aoti_compile_and_package with freezing (weights packed at compile time), once for "
    "each number of threads",
    "session": "torch.set_num_threads(threads), inference mode",
}
SETTINGS_X86 = {"quantization": "torchao's X86InductorQuantizer with its default configuration", **_COMMON}
SETTINGS_OURS = {
    "quantization": "this project's quantizer for the target native, min-max observers",
    **_COMMON,
}


def prepare_x86(request: Request, stage: Stage) -> Made:
    """Quantizes by torchao's own quantizer for Inductor."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    module = request.load().module(check_guards=False)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    with stage("quantize"), torch.no_grad():
        prepared = prepare_pt2e(module, quantizer)
        batches = [tuple(map(torch.from_numpy, inputs)) for _, inputs in request.samples.batches()]
        for batch in batches:
            prepared(*batch)
        program = torch.export.export(convert_pt2e(prepared), batches[0])
    return _compile(program, request, stage)


def prepare_ours(request: Request, stage: Stage) -> Made:
    """Quantizes as qcompiler does; Inductor recognizes the same operators as in the output of its own quantizer."""
    import torch

    from qcompiler.config import CompileConfig
    from qcompiler.quantization import quantize
    from qcompiler.targets.registry import resolve

    program = request.load()
    with stage("quantize"):
        batches = [tuple(map(torch.from_numpy, inputs)) for _, inputs in request.samples.batches()]
        quantized, _ = quantize(program, resolve("native").rules, batches, CompileConfig())
    return _compile(quantized, request, stage)


def _compile(program: ExportedProgram, request: Request, stage: Stage) -> Made:
    import torch
    import torch._inductor.config as config

    # The registration of the patterns that make quantize, convolution and dequantize one oneDNN call.
    import torchao.quantization.pt2e.inductor_passes.x86  # noqa: F401

    settings: Any = config
    settings.freezing = True
    models: dict[int, Path] = {}
    with stage("compile"):
        for threads in request.threads:
            torch.set_num_threads(threads)  # generated loops have it as a constant
            path = request.folder / f"model-{threads}-threads.pt2"
            with torch.no_grad():
                torch._inductor.aoti_compile_and_package(program, package_path=str(path))
            models[threads] = path
    return Made(models, max(path.stat().st_size for path in models.values()))


X86 = Peer(
    "inductor-x86",
    "int8",
    ("torch", "torchao"),
    prepare_x86,
    "inductor:open_session",
    SETTINGS_X86,
    probe=probe,
)
OURS = Peer(
    "inductor-pt2e",
    "int8",
    ("torch", "torchao"),
    prepare_ours,
    "inductor:open_session",
    SETTINGS_OURS,
    probe=probe,
)
