"""Other engines that ``bench`` measures beside a bundle, from the same float model and calibration data."""

from __future__ import annotations

from qcompiler.driver.peers import executorch, inductor, onnx_runtime, openvino, pytorch, tvm_stock
from qcompiler.driver.peers.base import Peer, PeerOptions, Request

PEERS: dict[str, tuple[Peer, ...]] = {
    "torch": (pytorch.EAGER, pytorch.COMPILED),
    "onnxruntime": (onnx_runtime.PEER,),
    "openvino": (openvino.PEER,),
    "onnxruntime-fp32": (onnx_runtime.FLOAT,),
    "openvino-fp32": (openvino.FLOAT,),
    "openvino-bf16": (openvino.BFLOAT16,),
    "inductor": (inductor.X86, inductor.OURS),
    "executorch": (executorch.PEER,),
    "tvm": (tvm_stock.PEER,),
}
"""Engines by the name that ``--against`` takes."""


def by_name(name: str) -> Peer:
    """The engine that calls itself ``name``."""
    return next(peer for peers in PEERS.values() for peer in peers if peer.name == name)


__all__ = ["PEERS", "Peer", "PeerOptions", "Request", "by_name"]
