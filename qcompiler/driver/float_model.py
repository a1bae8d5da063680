"""The float model that a bundle is compared with, run by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from qcompiler.driver.data import Array
from qcompiler.errors import FrontendError
from qcompiler.frontend import capture

FloatModel = Callable[..., list[Array]]
"""Takes one array an input, and returns one array an output, nested outputs flattened."""


def load_float_model(source: str, shapes: Sequence[tuple[int, ...]]) -> FloatModel:
    """The model of a ``.pt2`` archive, of an ONNX file, or of ``package.module:function``.

    Args:
        source: where it is.
        shapes: of its inputs; they fix the symbolic extents of an ONNX file.

    Raises:
        FrontendError: it cannot be read or captured.
    """
    return float_model(capture.resolve(source, shapes=shapes))


def float_model(program: ExportedProgram) -> FloatModel:
    """Runs ``program`` with PyTorch, eagerly, without gradients.

    What it returns raises FrontendError for inputs that the program refuses.
    """
    module = program.module()

    def run(*inputs: Array) -> list[Array]:
        try:
            with torch.inference_mode():
                outputs = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))
        except (RuntimeError, TypeError, ValueError) as error:
            shapes = ", ".join(f"{array.dtype}{list(array.shape)}" for array in inputs)
            raise FrontendError(f"the float model refuses inputs {shapes}: {error}") from error
        return [
            leaf.numpy(force=True) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)
        ]

    return run
