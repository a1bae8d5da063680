"""OpenVINO, quantized by NNCF's post-training quantization."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.driver.data import Samples
from qcompiler.driver.peers.base import Peer, Session

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def prepare(program: ExportedProgram, calibration: Samples, folder: Path) -> Path:
    """Converts the model and quantizes it."""
    import nncf
    import openvino

    model = openvino.convert_model(program)
    dataset = nncf.Dataset([list(inputs) for _, inputs in calibration.batches()])
    quantized = nncf.quantize(model, dataset, subset_size=calibration.runs)
    path = folder / "model.xml"
    openvino.save_model(quantized, path)
    return path


def session(model: Path, threads: int) -> Session:
    import openvino

    options = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1", "INFERENCE_NUM_THREADS": str(threads)}
    compiled = openvino.Core().compile_model(model, "CPU", options)

    def run(inputs: Any) -> Any:
        return compiled(list(inputs), share_inputs=True, share_outputs=True)

    return run


PEER = Peer("openvino", "int8", ("openvino", "nncf"), prepare, session)
