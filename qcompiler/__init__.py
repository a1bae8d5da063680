"""qcompiler: from a trained PyTorch model to a fast, exact int8 shared library.

``qcompiler.compile(model, (x,), calibration=batches, output="my-bundle")`` writes a bundle, and
``qcompiler.load("my-bundle").run(x)`` runs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qcompiler._version import __version__
from qcompiler.config import CompileConfig
from qcompiler.errors import QCompilerError
from qcompiler.runtime import Model, load

if TYPE_CHECKING:
    import torch

    from qcompiler.driver.compile import CompileResult

__all__ = ["CompileConfig", "Model", "QCompilerError", "__version__", "compile", "load"]


def compile(
    model: Any,
    example_inputs: tuple[torch.Tensor, ...] | None = None,
    *,
    calibration: str | Path | Iterable[Any] | None = None,
    output: str | Path,
    config: CompileConfig | None = None,
    **options: Any,
) -> CompileResult:
    """Compiles a trained PyTorch model into a bundle with an int8 shared library.

    Args:
        model: a module in evaluation mode, a ``torch.export.ExportedProgram``, the path of a ``.pt2`` archive, or
            ``"package.module:function"`` that returns a module and its example inputs.
        example_inputs: for a module, tensors of the shapes and dtypes that the library is for.
        calibration: samples that show the ranges of activations: the path of an ``.npz`` file with an array an
            input (first axis: samples), or an iterable of batches. A model that carries quantize and dequantize
            nodes already needs none.
        output: the folder to write.
        config: all options as one object; or give them by name:
        options: fields of :class:`CompileConfig`, such as ``target="x86-avx2"``.

    Returns:
        The bundle's folder and its manifest: the operators left in float with their reasons, and each layer's
        instruction and accumulator bound.

    Raises:
        QCompilerError: the class says what kind of fault, the message what to do.
    """
    from dataclasses import replace

    from qcompiler.driver.compile import compile_model
    from qcompiler.errors import ConfigError

    unknown = sorted(set(options) - set(CompileConfig.option_names()))
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; known: {', '.join(CompileConfig.option_names())}")
    settings = replace(config or CompileConfig(), **options)
    return compile_model(
        model, settings, calibration=calibration, output=output, example_inputs=example_inputs
    )
