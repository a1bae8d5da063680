"""Calibration data: from files and iterables to checked batches of the model's own shape."""

from __future__ import annotations

import logging
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch

from qcompiler.errors import CalibrationError

LABELS = "labels"
"""Array of an ``.npz`` file that is no input of the model: the right class of each sample."""

_ADVICE = "write one with numpy.savez(path, x=array), an array an input"

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
    whole batch of the model's batch size are left out, and that is logged. For a model whose inputs have no common
    batch size the arrays are one batch, of exactly the inputs' shapes.

    Args:
        path: the file; nothing of it is unpickled.
        inputs: the model's inputs, with the batch size in their shapes.

    Raises:
        CalibrationError: the file cannot be read, an array is missing, misshapen, empty, or not finite.
    """
    arrays = _by_name(_read(Path(path)), inputs, str(path))
    return _batched([arrays], inputs, f"in {path}")


def from_iterable(batches: Iterable[Any], inputs: Sequence[InputInfo]) -> list[Batch]:
    """Batches from an iterable of samples or batches.

    Args:
        batches: each element a tensor or an array (a model with one input), a tuple or list with one an input, or a
            dictionary by input name; with any number of samples along the first axis, or exactly one batch if the
            model's inputs have no common batch size. A single tensor, array or dictionary is one element.
        inputs: the model's inputs, with the batch size in their shapes.

    Raises:
        CalibrationError: an element is misshapen, of another type, or not finite; or there is none.
    """
    if isinstance(batches, torch.Tensor | np.ndarray | Mapping):
        batches = [batches]
    if not isinstance(batches, Iterable) or isinstance(batches, str):
        raise CalibrationError(
            f"calibration data is a {type(batches).__name__}; give an iterable of batches: tensors, arrays, or tuples "
            "or dictionaries of them"
        )
    elements = []
    for position, element in enumerate(batches):
        where = f"element {position} of the calibration data"
        if isinstance(element, Mapping):
            named = {str(key): value for key, value in element.items()}
            elements.append(_by_name(named, inputs, where))
            continue
        values = list(element) if isinstance(element, tuple | list) else [element]
        if len(values) != len(inputs):
            raise CalibrationError(
                f"{where} has {len(values)} tensors; the model has {len(inputs)} inputs: {_names(inputs)}"
            )
        elements.append(values)
    return _batched(elements, inputs, "given")


def track(batches: Sequence[T], enabled: bool, title: str = "Calibrating") -> Iterator[T]:
    """The batches, with a progress bar on the standard error if ``enabled``."""
    if not enabled:
        yield from batches
        return
    from rich.console import Console
    from rich.progress import track as rich_track

    yield from rich_track(batches, description=title, console=Console(stderr=True), transient=True)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CalibrationError(f"calibration file {path} does not exist; {_ADVICE}")
    if not zipfile.is_zipfile(path):
        raise CalibrationError(f"calibration file {path} is no .npz file; {_ADVICE}")
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CalibrationError(f"calibration file {path} cannot be read: {reason}; {_ADVICE}") from error


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


def _batch_size(inputs: Sequence[InputInfo]) -> int | None:
    """The first extent, if all inputs have the same; else the model has no batch axis."""
    sizes = {i.shape[0] if i.shape else None for i in inputs}
    return sizes.pop() if len(sizes) == 1 else None


def _batched(elements: Sequence[Sequence[Any]], inputs: Sequence[InputInfo], where: str) -> list[Batch]:
    """Elements of any number of samples, joined and cut into the model's batch size."""
    size = _batch_size(inputs)
    checked = [
        tuple(
            _checked(
                value, info, f"{info.name} of element {position}" if len(elements) > 1 else info.name, size
            )
            for value, info in zip(element, inputs, strict=True)
        )
        for position, element in enumerate(elements)
    ]
    if not checked:
        raise CalibrationError(f"no calibration samples {where}; a few hundred are a good number")
    if size is None:
        return checked
    joined = [torch.cat(column) for column in zip(*checked, strict=True)]
    counts = {len(t) for t in joined}
    if len(counts) > 1:
        described = ", ".join(f"{i.name}: {len(t)}" for i, t in zip(inputs, joined, strict=True))
        raise CalibrationError(f"inputs {where} have different numbers of samples: {described}")
    count = counts.pop()
    if count == 0:
        raise CalibrationError(f"no calibration samples {where}; a few hundred are a good number")
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


def _checked(value: Any, info: InputInfo, name: str, size: int | None) -> torch.Tensor:
    """A tensor of the input's dtype, all finite, of any number of samples if the model has a batch size."""
    tensor = _cast(_tensor(value, name), info, name)
    shape = tuple(info.shape)
    if size is None:
        if tuple(tensor.shape) != shape:
            raise CalibrationError(f"{name} has shape {list(tensor.shape)}; expected: {list(shape)}")
    elif tuple(tensor.shape) == shape[1:]:
        tensor = tensor[None]  # one sample
    elif tensor.ndim != len(shape) or tuple(tensor.shape[1:]) != shape[1:]:
        wanted = ", ".join(["samples", *map(str, shape[1:])])
        raise CalibrationError(f"{name} has shape {list(tensor.shape)}; expected: [{wanted}]")
    if tensor.dtype.is_floating_point and not bool(torch.isfinite(tensor).all()):
        bad = ~torch.isfinite(tensor)
        where = "" if size is None else f" in sample {int(bad.reshape(len(bad), -1).any(dim=1).nonzero()[0])}"
        kind = "NaN" if bool(tensor.isnan().any()) else "infinity"
        raise CalibrationError(f"{name} has a value that is not finite ({kind}){where}; remove or repair it")
    return tensor


def _tensor(value: Any, name: str) -> torch.Tensor:
    if isinstance(value, np.ndarray):
        native = np.require(value, value.dtype.newbyteorder("="), ["C", "W"])
        try:
            return torch.from_numpy(native)
        except TypeError:
            raise CalibrationError(f"{name} has dtype {value.dtype}; allowed are numbers") from None
    if not isinstance(value, torch.Tensor):
        raise CalibrationError(f"{name} is a {type(value).__name__}; allowed: tensors and NumPy arrays")
    return value.detach().cpu()


def _cast(tensor: torch.Tensor, info: InputInfo, name: str) -> torch.Tensor:
    """Another width of floating-point numbers is converted; integers are not: their range is another."""
    if tensor.dtype == info.dtype:
        return tensor
    if not (tensor.dtype.is_floating_point and info.dtype.is_floating_point):
        raise CalibrationError(
            f"{name} has dtype {tensor.dtype}; the model's input has {info.dtype}: prepare the data as for the model"
        )
    return tensor.to(info.dtype)
