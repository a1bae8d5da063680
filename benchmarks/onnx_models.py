"""QDQ models of ONNX Runtime's own quantizer: compiled, verified, and compared with ONNX Runtime.

    python benchmarks/onnx_models.py FOLDER resnet18 mobilenet_v2 mobilenet_v3_large

For each network, once with uint8 and once with int8 activations (U8S8, S8S8): exports it to ONNX, quantizes it with
``onnxruntime.quantization.quantize_static`` (QDQ, per channel), compiles the result, and prints as JSON how many of the
outputs equal the reference's bits, and how they agree with ONNX Runtime's, optimized as it is by default and not at all
(each node as the standard says).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quant_pre_process,
    quantize_static,
)

import qcompiler
from qcompiler.driver.verify import verify

IMAGES = 32
"""Images that outputs are compared on."""

ACTIVATIONS = {"U8S8": QuantType.QUInt8, "S8S8": QuantType.QInt8}
LEVELS = {
    "optimized": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "as the standard says": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

Array = np.ndarray[Any, Any]


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Array) -> None:
        self.images: Iterator[Array] = iter(images)

    def get_next(self) -> dict[str, Array] | None:
        image = next(self.images, None)
        return None if image is None else {"x": image[None]}


def quantized(name: str, folder: Path, style: str) -> Path:
    """The network ``name``, quantized by ONNX Runtime."""
    simple, made = folder / f"{name}.onnx", folder / f"{name}-{style}.onnx"
    if not simple.exists():
        exported = folder / f"{name}-exported.onnx"
        torch.onnx.export(
            models.make(name),
            (models.images(1, 100),),
            str(exported),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
        quant_pre_process(str(exported), str(simple))
        exported.unlink()
    reader = _Reader(models.images(models.CALIBRATION_IMAGES, 200).numpy())
    quantize_static(
        str(simple), str(made), reader, quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=ACTIVATIONS[style], weight_type=QuantType.QInt8,
    )  # fmt: skip
    return made


def output_step(path: Path) -> float | None:
    """The scale of the last dequantize node, if the model ends in one."""
    graph = onnx.load(str(path)).graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    (last,) = [node for node in graph.node if graph.output[0].name in node.output]
    return (
        float(numpy_helper.to_array(constants[last.input[1]])) if last.op_type == "DequantizeLinear" else None
    )


def run_peer(path: Path, images: Array, level: Any) -> Array:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: image[None]})[0] for image in images])


def agreement(found: Array, wanted: Array, step: float | None) -> dict[str, float]:
    """How two sets of outputs ``[N, classes]`` agree; differences in steps where the output is quantized."""
    noise = np.square(found.astype(np.float64) - wanted).sum()
    result = {
        "same top-1": float(np.mean(found.argmax(1) == wanted.argmax(1))),
        "SQNR dB": float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / max(noise, 1e-300))),
    }
    if step is None:
        # Real outputs, in shares of the largest; less than this is the rounding of sums and biases.
        shares = np.abs(found - wanted) / np.abs(wanted).max()
        result |= {
            "outputs that differ": float(np.mean(shares > 1e-4)),
            "largest, of the range": float(shares.max()),
        }
    else:
        steps = np.abs(np.rint((found - wanted) / step))
        result |= {"outputs that differ": float(np.mean(steps > 0)), "largest, in steps": float(steps.max())}
        result["mean, in steps"] = float(steps.mean())
    return result


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    images = models.images(IMAGES, 300).numpy()
    data = folder / "images.npz"
    np.savez(data, x=images)
    for name in names:
        for style in ACTIVATIONS:
            path = quantized(name, folder, style)
            bundle = folder / f"{name}-{style}"
            manifest = qcompiler.compile(path, output=bundle).manifest
            checked = verify(bundle, data, limit=8)
            model = qcompiler.load(bundle, threads=1)
            found = np.concatenate([model.run(image[None])[0] for image in images])
            step = output_step(path)
            row = {
                "network": name,
                "style": style,
                "float operators": len(manifest.float_operators),
                "bits": checked.fault or "equal",
                "outputs compared with the reference": sum(o.elements for o in checked.outputs),
            }
            for title, level in LEVELS.items():
                row[title] = agreement(found, run_peer(path, images, level), step)
            peers = [run_peer(path, images, level) for level in LEVELS.values()]
            row["ONNX Runtime optimized against as the standard says"] = agreement(*peers, step)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] or ["resnet18", "mobilenet_v2", "mobilenet_v3_large"])
