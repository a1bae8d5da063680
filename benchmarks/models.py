"""The networks of the benchmarks: torchvision's definitions, random weights, real batch-norm statistics.

Speed and the equality of bits do not depend on what the weights were trained for. Run as a program, this writes
``NAME.pt2`` and ``NAME.npz`` (calibration data) for each name into a folder:

    python benchmarks/models.py FOLDER resnet18 resnet50 mobilenet_v2
"""

from __future__ import annotations

import contextlib
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

NAMES = (
    "resnet18",
    "resnet50",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "densenet121",
    "squeezenet1_1",
    "shufflenet_v2_x1_0",
    "regnet_y_400mf",
    "googlenet",
)
SIZE = 224
CALIBRATION_IMAGES = 16


@functools.cache
def _torchvision_models() -> tuple[Any, torch.library.Library]:
    """torchvision's models, and the definitions that have to live as long as they do.

    A torchvision built for another torch registers no operators of its own, and then does not import for want of two.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        with contextlib.suppress(RuntimeError):  # it is there
            library.define(schema)
    import torchvision.models

    return torchvision.models, library


def images(count: int, seed: int) -> torch.Tensor:
    """Smooth random images, normalized: ``[count, 3, 224, 224]`` float32."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, SIZE // 8, SIZE // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=SIZE, mode="bilinear", align_corners=False)
    return smooth + 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator)


def make(name: str) -> torch.nn.Module:
    """The network ``name`` in evaluation mode."""
    torch.manual_seed(0)
    options = (
        {"aux_logits": False, "init_weights": True, "transform_input": False} if name == "googlenet" else {}
    )
    model = getattr(_torchvision_models()[0], name)(weights=None, **options).train()
    with torch.no_grad():
        for seed in range(2):
            model(images(8, seed))
    return model.eval()


def write(name: str, folder: Path, batch: int = 1) -> tuple[Path, Path]:
    """Writes the exported network and its calibration data, 16 images at any batch; returns both paths.

    Raises:
        ValueError: ``batch`` does not divide the number of images.
    """
    if CALIBRATION_IMAGES % batch:
        raise ValueError(f"batch is {batch}; it must divide the {CALIBRATION_IMAGES} images for calibration")
    program = torch.export.export(make(name), (images(batch, 100),))
    archive, data = folder / f"{name}.pt2", folder / f"{name}.npz"
    torch.export.save(program, archive)
    np.savez(data, x=images(CALIBRATION_IMAGES, 200).numpy())
    return archive, data


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True, exist_ok=True)
    for model_name in sys.argv[2:] or NAMES:
        print(*write(model_name, target))
