"""ONNX Runtime, quantized by its own quantizer: QDQ, static, per channel, u8 activations and s8 weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler.driver.data import Array, Samples
from qcompiler.driver.peers.base import Peer, Session

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def prepare(program: ExportedProgram, calibration: Samples, folder: Path) -> Path:
    """Exports the model to ONNX and quantizes it."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    exported, simplified, quantized = (folder / f"{stage}.onnx" for stage in ("float", "simple", "int8"))
    torch.onnx.export(program, (), str(exported), dynamo=True, external_data=False, verbose=False)
    quant_pre_process(str(exported), str(simplified))
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(str(simplified), options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self.batches: Iterator[tuple[int, tuple[Array, ...]]] = calibration.batches()

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self.batches, None)
            return None if batch is None else dict(zip(names, batch[1], strict=True))

    quantize_static(
        str(simplified),
        str(quantized),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return quantized


def session(model: Path, threads: int) -> Session:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    loaded = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in loaded.get_inputs()]

    def run(inputs: Any) -> Any:
        return loaded.run(None, dict(zip(names, inputs, strict=True)))

    return run


PEER = Peer("onnxruntime", "int8", ("onnxruntime", "onnx", "onnxscript"), prepare, session)
