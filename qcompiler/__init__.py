"""qcompiler: from a trained PyTorch model to a fast, exact int8 shared library.

``qcompiler.compile(model, (x,), calibration=batches, output="my-bundle")`` writes a bundle, and
``qcompiler.load("my-bundle").run(x)`` runs it.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from qcompiler._version import __version__
from qcompiler.config import CompileConfig
from qcompiler.errors import QCompilerError
from qcompiler.runtime import Model, load

if TYPE_CHECKING:
    import torch

    from qcompiler.compression import Pruned
    from qcompiler.driver.analyze import Analysis
    from qcompiler.driver.compile import CompileResult
    from qcompiler.driver.onnx_model import Engine, OnnxExport
    from qcompiler.driver.quantize import QuantizeResult
    from qcompiler.driver.simulate import IntegerModule
    from qcompiler.quantization.training import QATModule

__all__ = [
    "CompileConfig",
    "Model",
    "QCompilerError",
    "__version__",
    "analyze",
    "compile",
    "export_onnx",
    "load",
    "prepare_qat",
    "prune_channels",
    "quantize",
    "simulate",
]


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
        model: a module in evaluation mode, a trained module of :func:`prepare_qat`, a ``torch.export.ExportedProgram``, the path of a ``.pt2`` archive, or
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
    from qcompiler.driver.compile import compile_model

    return compile_model(
        model,
        _settings(config, options),
        calibration=calibration,
        output=output,
        example_inputs=example_inputs,
    )


def quantize(
    model: Any,
    example_inputs: tuple[torch.Tensor, ...] | None = None,
    *,
    calibration: str | Path | Iterable[Any],
    output: str | Path,
    config: CompileConfig | None = None,
    **options: Any,
) -> QuantizeResult:
    """Quantizes a model into a ``.pt2`` archive that :func:`compile` takes for every target, with the same bits.

    Args:
        model: as for :func:`compile`, in float.
        example_inputs: as for :func:`compile`.
        calibration: as for :func:`compile`.
        output: the archive to write.
        config: all options as one object; or give them by name:
        options: fields of :class:`CompileConfig`, such as ``effort="max"``.

    Returns:
        What stayed in float with the reasons, and what each optimization gained.

    Raises:
        QCompilerError: the class says what kind of fault, the message what to do.
    """
    from qcompiler.driver.quantize import quantize_model

    return quantize_model(
        model,
        _settings(config, options),
        calibration=calibration,
        output=Path(output),
        example_inputs=example_inputs,
    )


def export_onnx(
    model: Any,
    example_inputs: tuple[torch.Tensor, ...] | None = None,
    *,
    calibration: str | Path | Iterable[Any] | None = None,
    output: str | Path,
    engine: Engine = "onnxruntime",
    config: CompileConfig | None = None,
    **options: Any,
) -> OnnxExport:
    """Quantizes a model, if it is not, and writes it as a QDQ ONNX model.

    Args:
        model: as for :func:`compile`.
        example_inputs: as for :func:`compile`.
        calibration: as for :func:`compile`.
        output: the file to write.
        engine: who will run it; ``tensorrt`` needs ``symmetric_activations=True``.
        config: all options as one object; or give them by name:
        options: fields of :class:`CompileConfig`, such as ``effort="max"``.

    Raises:
        QCompilerError: the class says what kind of fault, the message what to do.
    """
    from qcompiler.driver import onnx_model

    return onnx_model.export_onnx(
        model,
        _settings(config, options),
        calibration=calibration,
        output=output,
        engine=engine,
        example_inputs=example_inputs,
    )


def analyze(
    model: Any,
    example_inputs: tuple[torch.Tensor, ...] | None = None,
    *,
    calibration: str | Path | Iterable[Any],
    limit: int | None = None,
    config: CompileConfig | None = None,
    **options: Any,
) -> Analysis:
    """Measures which layers lose accuracy when a model is quantized as :func:`compile` would, and why.

    Args:
        model: as for :func:`compile`, in float.
        example_inputs: as for :func:`compile`.
        calibration: as for :func:`compile`.
        limit: samples to measure on, evenly spread over the calibration data; 16 if None.
        config: all options as one object; or give them by name:
        options: fields of :class:`CompileConfig`, such as ``effort="max"``.

    Raises:
        QCompilerError: the class says what kind of fault, the message what to do.
    """
    from qcompiler.driver import analyze as driver

    return driver.analyze(
        model, _settings(config, options), calibration=calibration, limit=limit, example_inputs=example_inputs
    )


def prepare_qat(
    model: Any,
    example_inputs: tuple[torch.Tensor, ...] | None = None,
    target: str = "native",
    *,
    calibration: str | Path | Iterable[Any] | None = None,
    learned_scales: bool = False,
    config: CompileConfig | None = None,
    **options: Any,
) -> QATModule:
    """Makes a module for quantization-aware training, to be trained in a loop of your own.

    It has fake quantization at the places and of the scheme that :func:`compile` quantizes with, and batch norms that
    are part of their layers. Train it, call ``freeze()`` on it before the last epochs, and give it to :func:`compile`.
    The model itself is left alone.

    Args:
        model: as for :func:`compile`; a module can then be trained at any batch size, an exported program at its own.
        example_inputs: for a module, tensors of the shapes and dtypes of its inputs.
        target: name of the target, or ``native``; targets with the same rules take the same trained module.
        calibration: data that gives the first ranges of activations, as for :func:`compile`; without it the first
            training batch does.
        learned_scales: train the scales of activations and weights as well (LSQ). Else ranges of activations follow
            the batches until they are frozen, and scales of weights the weights.
        config: all options as one object; or give them by name:
        options: fields of :class:`CompileConfig`, such as ``keep_float=("classifier",)``.

    Raises:
        QCompilerError: the class says what kind of fault, the message what to do.
    """
    from dataclasses import replace

    from qcompiler.driver import qat

    return qat.prepare_qat(
        model,
        replace(_settings(config, options), target=target),
        example_inputs=example_inputs,
        calibration=calibration,
        learned_scales=learned_scales,
    )


def prune_channels(
    model: torch.nn.Module,
    example_inputs: tuple[torch.Tensor, ...],
    reduction: float,
    *,
    importance: Literal["l1", "batch-norm", "taylor"] = "l1",
    multiple: int = 1,
    keep_at_least: float = 0.2,
    keep: tuple[str, ...] = (),
) -> Pruned:
    """Takes the channels out of a module that matter least; the module is left alone, a smaller copy is returned.

    Channels that residual additions, depthwise convolutions or concatenations couple go together. The smaller module
    computes what the original does when nobody reads the removed channels; that is checked on the example inputs. It
    is an ordinary module, to be trained on.

    Args:
        model: the module.
        example_inputs: tensors of the shapes and dtypes of its inputs.
        reduction: share of the multiply-accumulates to remove, in (0, 1).
        importance: ``l1``, the magnitude of weights; ``batch-norm``, that of the batch norm's weights; or ``taylor``,
            from gradients that ``backward()`` has left in the parameters.
        multiple: what remains of a layer's channels, if it loses some, is a multiple of it: 16 fills the vectors of AVX-512, 8 those of AVX2, 4 NEON's.
        keep_at_least: share of each layer's channels that stays, in (0, 1].
        keep: paths of modules whose channels all stay.

    Raises:
        QCompilerError: the class says what kind of fault, the message what to do.
    """
    from qcompiler.driver import prune

    return prune.prune_channels(
        model,
        example_inputs,
        reduction,
        importance=importance,
        multiple=multiple,
        keep_at_least=keep_at_least,
        keep=keep,
    )


def simulate(
    model: Any,
    example_inputs: tuple[torch.Tensor, ...] | None = None,
    *,
    calibration: str | Path | Iterable[Any] | None = None,
    config: CompileConfig | None = None,
    **options: Any,
) -> IntegerModule:
    """Makes a PyTorch module that computes what the compiled library computes, without compiling it.

    Integer operators give the library's bits; so this tells the accuracy of any target on any machine, and that of a
    module in training: ``simulate(qat.eval(), (x,))``. It holds the weights as they are now.

    Args:
        model: as for :func:`compile`.
        example_inputs: as for :func:`compile`; the module takes whole multiples of their batch size.
        calibration: as for :func:`compile`.
        config: all options as one object; or give them by name:
        options: fields of :class:`CompileConfig`.

    Raises:
        QCompilerError: the class says what kind of fault, the message what to do.
    """
    from qcompiler.driver import simulate as driver

    return driver.simulate(
        model, _settings(config, options), calibration=calibration, example_inputs=example_inputs
    )


def _settings(config: CompileConfig | None, options: dict[str, Any]) -> CompileConfig:
    from dataclasses import replace

    from qcompiler.errors import ConfigError

    unknown = sorted(set(options) - set(CompileConfig.option_names()))
    if unknown:
        raise ConfigError(f"unknown option {unknown[0]!r}; known: {', '.join(CompileConfig.option_names())}")
    return replace(config or CompileConfig(), **options)
