"""OpenVINO, quantized by NNCF's post-training quantization."""

from __future__ import annotations

from qcompiler.driver.peers.base import Made, Peer, Request, Stage, size_of

SETTINGS = {
    "quantization": "nncf.quantize with the preset PERFORMANCE (symmetric) over all calibration runs",
    "session": "PERFORMANCE_HINT=LATENCY, NUM_STREAMS=1, INFERENCE_NUM_THREADS = threads; inputs and outputs shared "
    "with NumPy; precision of float operators is the plugin's choice (bf16 where the CPU has it)",
    "cache": "CACHE_DIR beside the model: a session loads what the first one compiled",
}


def prepare(request: Request, stage: Stage) -> Made:
    """Converts the model, quantizes it, and compiles it once into the cache of each number of threads."""
    import nncf
    import openvino

    from qcompiler.driver.peers.sessions import openvino as session

    program = request.load()
    with stage("export"):
        model = openvino.convert_model(program)
    with stage("quantize"):
        dataset = nncf.Dataset([list(inputs) for _, inputs in request.samples.batches()])
        quantized = nncf.quantize(
            model,
            dataset,
            preset=nncf.QuantizationPreset.PERFORMANCE,
            subset_size=request.samples.runs,
        )
        path = request.folder / "model.xml"
        openvino.save_model(quantized, path)
    with stage("compile"):
        for threads in request.threads:
            session.open_session(str(path), threads)
    return request.for_all_threads(path, size_of(path, path.with_suffix(".bin")))


PEER = Peer("openvino", "int8", ("openvino", "nncf"), prepare, "openvino:open_session", SETTINGS)


def prepare_float(request: Request, stage: Stage) -> Made:
    """Converts the model, and compiles it once into the cache of each number of threads."""
    import openvino

    from qcompiler.driver.peers.sessions import openvino as session

    with stage("export"):
        model = openvino.convert_model(request.load())
        path = request.folder / "model.xml"
        openvino.save_model(model, path, compress_to_fp16=False)
    with stage("compile"):
        for threads in request.threads:
            session.open_float32_session(str(path), threads)
    return request.for_all_threads(path, size_of(path, path.with_suffix(".bin")))


FLOAT = Peer(
    "openvino-fp32",
    "float32",
    ("openvino",),
    prepare_float,
    "openvino:open_float32_session",
    {"session": SETTINGS["session"] + "; INFERENCE_PRECISION_HINT=f32", "cache": SETTINGS["cache"]},
)
BFLOAT16 = Peer(
    "openvino-bf16",
    "bfloat16",
    ("openvino",),
    prepare_float,
    "openvino:open_bfloat16_session",
    {"session": SETTINGS["session"] + "; INFERENCE_PRECISION_HINT=bf16", "cache": SETTINGS["cache"]},
)
