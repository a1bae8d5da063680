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
