"""A trained network out to ONNX, run by ONNX Runtime, and in again.

    python benchmarks/onnx_round_trip.py MODEL.pt2 CALIBRATION.npz TEST.npz FOLDER

Compiles the model, writes it as a QDQ ONNX model, compiles that, and prints as JSON the top-1 of the three on ``labels``
of the test data, how many outputs of the two libraries differ in a bit, and how the libraries agree with ONNX Runtime.
The same once more for TensorRT's form of the model (int8 activations with zero point 0), run by ONNX Runtime too.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from onnx_models import LEVELS, agreement, output_step, run_peer

import qcompiler
from qcompiler.config import CompileConfig
from qcompiler.driver.onnx_model import export_onnx

Array = np.ndarray[Any, Any]


def outputs(bundle: Path, images: Array) -> Array:
    model = qcompiler.load(bundle, threads=1)
    return np.concatenate([model.run(image[None])[0] for image in images])


def main(model: Path, calibration: Path, test: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(test) as data:
        labels = data["labels"]
        images = next(data[name] for name in data.files if name != "labels").astype(np.float32)
    for engine in ("onnxruntime", "tensorrt"):
        config = CompileConfig(symmetric_activations=engine == "tensorrt")
        path = folder / f"{engine}.onnx"
        written = export_onnx(model, config, calibration=calibration, output=path, engine=engine)
        found = {}
        for name, source, data in (("out", model, calibration), ("in", path, None)):
            bundle = folder / f"{engine}-{name}"
            result = qcompiler.compile(source, calibration=data, output=bundle, config=config)
            assert not result.manifest.float_operators, result.manifest.float_operators
            found[name] = outputs(bundle, images)
        row: dict[str, Any] = {
            "engine": engine,
            "images": len(images),
            "nodes": written.operators,
            "top-1 of the library": float(np.mean(found["out"].argmax(1) == labels)),
            "top-1 of the library from ONNX": float(np.mean(found["in"].argmax(1) == labels)),
            "outputs of the two that differ": int((found["in"] != found["out"]).sum()),
        }
        step = output_step(path)
        for title, level in LEVELS.items():
            peer = run_peer(path, images, level)
            top1 = float(np.mean(peer.argmax(1) == labels))
            row[f"ONNX Runtime, {title}"] = {"top-1": top1, **agreement(found["out"], peer, step)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:5]))
