"""PyTorch in float32, eager and compiled."""

from __future__ import annotations

import shutil

from qcompiler.driver.peers.base import Made, Peer, PeerOptions, Probe, Request, Stage, installed, size_of

SETTINGS = {"session": "torch.set_num_threads(threads), inference mode"}


def prepare(request: Request, stage: Stage) -> Made:
    """Saves the model as it is."""
    import torch

    path = request.folder / "model.pt2"
    program = request.load()
    with stage("export"):
        torch.export.save(program, path)
    return request.for_all_threads(path, size_of(path))


def probe(peer: Peer, options: PeerOptions) -> Probe:
    """The package, and a C++ compiler, which generated code goes through."""
    found = installed(peer, options)
    if found.absent is None and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        return Probe(found.version, f"{peer.name} needs a C++ compiler; none is on the PATH")
    return found


EAGER = Peer("torch", "float32", ("torch",), prepare, "pytorch:eager", SETTINGS)
COMPILED = Peer("torch.compile", "float32", ("torch",), prepare, "pytorch:compiled", SETTINGS, probe=probe)
