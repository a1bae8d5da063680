"""ONNX Runtime, quantized by its own quantizer: QDQ, static, per channel, u8 activations and s8 weights."""

from __future__ import annotations

from collections.abc import Iterator

from qcompiler.driver.data import Array
from qcompiler.driver.peers.base import Made, Peer, Request, Stage, size_of

SETTINGS = {
    "quantization": "quant_pre_process, then quantize_static: QDQ, per channel, QUInt8 activations, QInt8 weights, "
    "min-max calibration",
    "graph": "ORT_ENABLE_ALL, applied once for this machine and saved (optimized_model_filepath), so that a session "
    "does not repeat it",
    "session": "intra_op_num_threads = threads, inter_op_num_threads = 1, sequential, spinning, memory arena and "
    "memory pattern on",
}


def prepare(request: Request, stage: Stage) -> Made:
    """Exports the model to ONNX, quantizes it, and optimizes the result for this machine."""
    import onnxruntime
    import torch
    from onnxruntime.quantization import (
        CalibrationDataReader,
        QuantFormat,
        QuantType,
        quant_pre_process,
        quantize_static,
    )

    folder = request.folder
    exported, simplified, quantized, optimized = (
        folder / f"{name}.onnx" for name in ("float", "simple", "int8", "model")
    )
    program = request.load()
    with stage("export"):
        torch.onnx.export(program, (), str(exported), dynamo=True, external_data=False, verbose=False)
        quant_pre_process(str(exported), str(simplified))
    providers = ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(simplified), onnxruntime.SessionOptions(), providers=providers)
    names = [argument.name for argument in session.get_inputs()]
    del session

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # the package has no types
        def __init__(self) -> None:
            self.batches: Iterator[tuple[int, tuple[Array, ...]]] = request.samples.batches()

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self.batches, None)
            return None if batch is None else dict(zip(names, batch[1], strict=True))

    with stage("quantize"):
        quantize_static(
            str(simplified),
            str(quantized),
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    with stage("compile"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(optimized)
        onnxruntime.InferenceSession(str(quantized), options, providers=providers)
    for file in (exported, simplified, quantized):
        file.unlink()
    return request.for_all_threads(optimized, size_of(optimized))


PEER = Peer(
    "onnxruntime",
    "int8",
    ("onnxruntime", "onnx", "onnxscript"),
    prepare,
    "onnx_runtime:open_session",
    SETTINGS,
)


def prepare_float(request: Request, stage: Stage) -> Made:
    """Exports the model to ONNX and optimizes it for this machine."""
    import onnxruntime
    import torch

    exported, optimized = request.folder / "float.onnx", request.folder / "model.onnx"
    with stage("export"):
        torch.onnx.export(request.load(), (), str(exported), dynamo=True, external_data=False, verbose=False)
    with stage("compile"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.optimized_model_filepath = str(optimized)
        onnxruntime.InferenceSession(str(exported), options, providers=["CPUExecutionProvider"])
    exported.unlink()
    return request.for_all_threads(optimized, size_of(optimized))


FLOAT = Peer(
    "onnxruntime-fp32",
    "float32",
    ("onnxruntime", "onnx", "onnxscript"),
    prepare_float,
    "onnx_runtime:open_session",
    {key: SETTINGS[key] for key in ("graph", "session")},
)
