"""Our own compiler, as one engine among the others."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path

from qcompiler.driver.peers.base import Made, Peer, Request, Stage, size_of

OWN = "qcompiler"
"""Name of the engine that runs bundles."""

NOT_SHIPPED_PER_MODEL = ("lib", "include", "reference.json.gz")
"""Parts of a bundle that are the engine itself, or that only ``verify`` reads."""

PACKAGE = Path(__file__).parents[2]

NOT_COMPILER = ("cli", "report", "driver/peers", "driver/bench")
"""Beginnings of paths in the package whose files do not change what a compilation makes."""


def prepare(request: Request, stage: Stage) -> Made:
    """Quantizes and compiles for this machine, with the tuning logs that the compiler finds."""
    import torch

    from qcompiler.config import CompileConfig
    from qcompiler.driver.compile import compile_model
    from qcompiler.quantization import quantize
    from qcompiler.targets.registry import resolve

    program = request.load()
    batches = [tuple(map(torch.from_numpy, inputs)) for _, inputs in request.samples.batches()]
    config = CompileConfig()
    with stage("quantize"):
        quantized, _ = quantize(program, resolve(config.target).rules, batches, config)
    bundle = request.folder / "bundle"
    with stage("compile"):
        compile_model(quantized, config, calibration=None, output=bundle)
    return request.for_all_threads(bundle, bundle_size(bundle))


def bundle_size(bundle: Path) -> int:
    """Bytes of a bundle that belong to its model."""
    return size_of(*(path for path in bundle.iterdir() if path.name not in NOT_SHIPPED_PER_MODEL))


@functools.cache
def stamp() -> str:
    """Hash of the compiler's files, tuning logs included: bundles of another one are stale."""
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(PACKAGE, followlinks=True):  # parts of the package are links
        folders[:] = sorted(name for name in folders if name != "__pycache__")
        for path in (Path(folder) / name for name in sorted(files)):
            place = path.relative_to(PACKAGE).as_posix()
            if not place.startswith(NOT_COMPILER):
                digest.update(place.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


PEER = Peer(
    OWN,
    "int8",
    ("qcompiler",),
    prepare,
    "own:open_session",
    {
        "quantization": "static, per channel, uint8 activations, min-max observers",
        "compiler": "target native, the tuning logs of the package",
        "session": "qcompiler.runtime.load(bundle, threads)",
    },
    stamp=stamp,
)
