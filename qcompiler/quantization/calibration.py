"""Calibration data: from files and iterables to checked batches of the model's own shape."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from qcompiler.errors import CalibrationError

LABELS = "labels"
"""Array of an ``.npz`` file that is no input of the model: the right class of each sample."""

Batch = tuple[torch.Tensor, ...]
T = TypeVar("T")

log = logging.getLogger(__name__)


class InputInfo(Protocol):
    """What is needed to know of an input of the model."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> torch.dtype: ...


def load_npz(path: str | Path, inputs: Sequence[InputInfo]) -> list[Batch]:
    """Batches from an ``.npz`` file with an array an input, whose first axis is the sample.

    A model with one input takes the only array there is, ``labels`` aside, whatever its name. Samples beyond the last
    whole batch of the model's batch size are left out, and that is logged.

    Args:
        path: the file; nothing of it is unpickled.
        inputs: the model's inputs, with the batch size in their shapes.

    Raises:
        CalibrationError: the file cannot be read, an array is missing, misshapen, empty, or not finite.
    """
    arrays = _read(Path(path))
    named = _by_name(arrays, inputs, str(path))
    return _batched([named], inputs, f"in {path}")


def from_iterable(batches: Iterable[Any], inputs: Sequence[InputInfo]) -> list[Batch]:
    """Batches from an iterable of samples or batches.

    Args:
        batches: each element a tensor or an array (a model with one input), a tuple or list with one an input, or a
            dictionary by input name; with any number of samples along the first axis.
        inputs: the model's inputs, with the batch size in their shapes.

    Raises:
        CalibrationError: an element is misshapen, of another type, or not finite; or there is none.
    """
    if isinstance(batches, torch.Tensor | np.ndarray):
        batches = [batches]
    elements = []
    for position, element in enumerate(batches):
        where = f"element {position} of the calibration data"
        if isinstance(element, Mapping):
            named = {str(key): value for key, value in element.items()}
            elements.append(_by_name(named, inputs, where))
            continue
        values = tuple(element) if isinstance(element, tuple | list) else (element,)
        if len(values) != len(inputs):
            raise CalibrationError(
                f"{where} has {len(values)} tensors; the model has {len(inputs)} inputs: {_names(inputs)}"
            )
        elements.append(list(values))
    return _batched(elements, inputs, "given")


def track(batches: Sequence[T], enabled: bool) -> Iterator[T]:
    """The batches, with a progress bar on the standard error if ``enabled``."""
    if not enabled:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(batches, description="Calibrating", console=Console(stderr=True), transient=True)


def _read(path: Path) -> dict[str, Any]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise CalibrationError(f"calibration file {path} does not exist") from None
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise CalibrationError(
            f"calibration file {path} is no .npz file of plain arrays: {str(error).splitlines()[0]}; "
            "write one with numpy.savez(path, x=array)"
        ) from error


def _names(inputs: Sequence[InputInfo]) -> str:
    return ", ".join(i.name for i in inputs)


def _by_name(arrays: Mapping[str, Any], inputs: Sequence[InputInfo], where: str) -> list[Any]:
    missing = [i.name for i in inputs if i.name not in arrays]
    if not missing:
        return [arrays[i.name] for i in inputs]
    others = [name for name in arrays if name != LABELS]
    if len(inputs) == 1 and len(others) == 1:
        return [arrays[others[0]]]
    raise CalibrationError(
        f"{where} has no array {missing[0]!r}; it has: {', '.join(arrays) or 'none'}; the model's inputs are: "
        f"{_names(inputs)}"
    )


def _batched(elements: Sequence[Sequence[Any]], inputs: Sequence[InputInfo], where: str) -> list[Batch]:
    """Elements of any number of samples, joined and cut into the model's batch size."""
    columns = [
        [_checked(element[k], info, position, len(elements)) for position, element in enumerate(elements)]
        for k, info in enumerate(inputs)
    ]
    if not elements or any(sum(len(t) for t in column) == 0 for column in columns):
        raise CalibrationError(f"no calibration samples {where}; a few hundred are a good number")
    joined = [torch.cat(column) for column in columns]
    counts = {len(t) for t in joined}
    if len(counts) > 1:
        described = ", ".join(f"{i.name}: {len(t)}" for i, t in zip(inputs, joined, strict=True))
        raise CalibrationError(f"inputs {where} have different numbers of samples: {described}")
    size, count = inputs[0].shape[0] if inputs[0].shape else 1, counts.pop()
    whole = count // size
    if whole == 0:
        raise CalibrationError(
            f"{count} calibration samples {where} do not fill one batch of {size}; give more"
        )
    if count % size:
        log.warning(
            "%d of %d calibration samples are left out: the model's batch is %d", count % size, count, size
        )
    return [tuple(t[k * size : (k + 1) * size] for t in joined) for k in range(whole)]


def _checked(value: Any, info: InputInfo, position: int, elements: int) -> torch.Tensor:
    """A tensor of the input's dtype and sample shape, all finite."""
    name = info.name if elements == 1 else f"{info.name} of element {position}"
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, torch.Tensor):
        raise CalibrationError(f"{name} is a {type(value).__name__}; allowed: tensors and NumPy arrays")
    tensor = value.detach().cpu()
    if tensor.dtype != info.dtype:
        if not (tensor.dtype.is_floating_point and info.dtype.is_floating_point):
            raise CalibrationError(f"{name} has dtype {tensor.dtype}; the model's input has {info.dtype}")
        tensor = tensor.to(info.dtype)
    if tensor.ndim == len(info.shape) - 1 and tuple(tensor.shape) == tuple(info.shape[1:]):
        tensor = tensor[None]  # one sample
    if tensor.ndim != len(info.shape) or tuple(tensor.shape[1:]) != tuple(info.shape[1:]):
        wanted = ", ".join(["samples", *map(str, info.shape[1:])])
        raise CalibrationError(f"{name} has shape {list(tensor.shape)}; expected: [{wanted}]")
    if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        sample = int((~torch.isfinite(tensor)).reshape(len(tensor), -1).any(dim=1).nonzero()[0])
        raise CalibrationError(
            f"{name} has a value that is not finite in sample {sample}; remove or repair it"
        )
    return tensor
