"""Step 1: a module, a ``.pt2`` archive, an ONNX file or an entry point becomes an exported program.

Whatever the source, the program that comes out takes tensors by position, has fixed shapes, writes to none of its
inputs, parameters and buffers, and was not traced in training mode; :func:`check` refuses any other.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.ao.quantization.fx._decomposed
from torch import nn
from torch.export import ExportedProgram

from qcompiler.errors import ConfigError, FrontendError
from qcompiler.frontend.program import TensorInfo, check, is_quantized, user_inputs, user_outputs

__all__ = [
    "TensorInfo",
    "capture",
    "check",
    "is_quantized",
    "load_entry_point",
    "load_exported",
    "resolve",
    "user_inputs",
    "user_outputs",
]

log = logging.getLogger(__name__)

_ENTRY_POINT = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def resolve(
    source: str,
    dims: Mapping[str, int] | None = None,
    shapes: Sequence[tuple[int, ...]] | None = None,
) -> ExportedProgram:
    """The program that a command line names.

    Args:
        source: path of a ``.pt2`` archive or of an ``.onnx`` file, or ``package.module:function`` as
            :func:`load_entry_point` takes it.
        dims: of an ONNX file, values of its symbolic extents, as :func:`qcompiler.frontend.onnx.load_onnx` takes them.
        shapes: of an ONNX file, extents of its inputs, instead of ``dims``.

    Raises:
        FrontendError: it is none of these, or cannot be read, or :func:`check` refuses it.
        ConfigError: ``dims`` are given with another source, or do not fit the ONNX file.
    """
    if source.endswith(".onnx"):
        from qcompiler.frontend.onnx import load_onnx

        return load_onnx(source, dims, shapes)
    if dims:
        raise ConfigError(f"dims fix the symbolic extents of ONNX files; model {source!r} has none")
    # Unlike Path.exists, this one takes names of any length, and the empty one.
    if os.path.exists(source) or source.endswith(".pt2"):
        return load_exported(Path(source))
    if _ENTRY_POINT.fullmatch(source):
        return load_entry_point(source)
    raise FrontendError(
        f"model {source!r} is no existing file and no entry point; give a .pt2 archive written by "
        "torch.export.save, an .onnx file, or package.module:function that returns (model, example_inputs)"
    )


def capture(model: nn.Module, example_inputs: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Exports a module for inference.

    A module in training mode, or with parts of it in training mode, is exported as after ``model.eval()``, which a
    warning says; every submodule has its own mode back afterwards.

    Args:
        model: takes the example inputs by position.
        example_inputs: tensors of the shapes and dtypes to compile for.

    Raises:
        FrontendError: an example input is no tensor, the module cannot be exported, or :func:`check` refuses it.
    """
    if not isinstance(model, nn.Module):
        raise FrontendError(f"the model is a {type(model).__name__}; it must be a torch.nn.Module")
    if not isinstance(example_inputs, tuple | list):
        raise FrontendError(
            f"example_inputs is a {type(example_inputs).__name__}; give a tuple of tensors, one an argument of forward"
        )
    if not example_inputs:
        raise FrontendError("example_inputs is empty; give a tuple of tensors, one an argument of forward")
    for k, example in enumerate(example_inputs):
        if not isinstance(example, torch.Tensor):
            raise FrontendError(
                f"example input {k} is a {type(example).__name__}; all must be tensors, and other arguments of "
                "forward must be fixed inside the module"
            )
    with _evaluation_mode(model):
        try:
            program = torch.export.export(model, tuple(example_inputs))
        except Exception as error:  # raises whatever the user's forward and the tracer raise
            raise FrontendError(
                f"{type(model).__name__} cannot be exported by PyTorch: {_brief(error)}"
            ) from error
    return check(program)


def load_exported(path: str | Path) -> ExportedProgram:
    """Reads a ``.pt2`` archive with ``torch.export.load``; nothing else of the file is read or unpickled.

    Raises:
        FrontendError: the file is missing, is no ``.pt2`` archive of an exported program, is damaged, or
            :func:`check` refuses the program.
    """
    path = Path(path)
    advice = "write it with torch.export.save(torch.export.export(model, inputs), path)"
    if not path.is_file():
        raise FrontendError(
            f"model {path} is {'a folder' if path.is_dir() else 'missing'}; give a .pt2 archive"
        )
    if not zipfile.is_zipfile(path):
        raise FrontendError(f"model {path} is no .pt2 archive (it is no complete zip file); {advice}")
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name.partition("/")[2] or name for name in archive.namelist()]
    except zipfile.BadZipFile as error:
        raise FrontendError(f"model {path} is a damaged zip file: {error}; {advice}") from error
    if "serialized_exported_program.json" not in members and not (
        "archive_format" in members and any(m.startswith("models/") for m in members)
    ):
        raise FrontendError(
            f"model {path} is no .pt2 archive (the zip file holds no exported program); {advice}"
        )
    with _quiet_export_log() as causes:
        try:
            program = torch.export.load(path)
        except Exception as error:  # a damaged archive raises whatever its reader trips over
            reason = _brief(causes[0] if causes else error)
            raise FrontendError(
                f"model {path} cannot be loaded by PyTorch {torch.__version__}: {reason}; export it again with this "
                "version, and import the packages of its custom operators first"
            ) from error
    return check(program)


def load_entry_point(source: str) -> ExportedProgram:
    """Calls a function for a model and captures it; the current folder is importable meanwhile.

    Args:
        source: ``package.module:function``; the function takes no arguments and returns (module, example inputs),
            the latter a tuple of tensors or one tensor.

    Raises:
        FrontendError: the module or function is missing, fails, or returns something else; or :func:`capture`
            refuses the model.
    """
    if not _ENTRY_POINT.fullmatch(source):
        raise FrontendError(f"entry point {source!r} is malformed; write package.module:function")
    module_name, _, function_name = source.partition(":")
    with _importable(Path.cwd()):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name is not None and (
                module_name == error.name or module_name.startswith(f"{error.name}.")
            ):
                raise FrontendError(
                    f"entry point {source!r}: there is no module {error.name!r} in {Path.cwd()} or among the installed "
                    "packages"
                ) from error
            raise FrontendError(f"entry point {source!r}: importing {module_name} failed: {error}") from error
        except Exception as error:  # the user's module may raise anything
            raise FrontendError(
                f"entry point {source!r}: importing {module_name} failed: {_brief(error)}"
            ) from error
        function = getattr(module, function_name, None)
        if not callable(function):
            fault = "has no" if function is None else "has no callable"
            raise FrontendError(
                f"entry point {source!r}: {module_name} ({module.__file__}) {fault} {function_name!r}"
            )
        try:
            result = function()
        except Exception as error:  # the user's function may raise anything
            raise FrontendError(
                f"entry point {source!r}: {function_name}() failed: {_brief(error)}"
            ) from error
        if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[0], nn.Module)):
            raise FrontendError(
                f"entry point {source!r}: {function_name}() returned {_described(result)}; it must return "
                "(torch.nn.Module, tuple of example inputs)"
            )
        model, inputs = result
        return capture(model, (inputs,) if isinstance(inputs, torch.Tensor) else inputs)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    if training:
        log.warning(
            "%s is in training mode; it is captured as if eval() had been called", type(model).__name__
        )
    # The flags themselves: eval() is refused by modules that come out of an exported program.
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    entry = str(folder)
    sys.path.insert(0, entry)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if entry in sys.path:  # the user's code may change the path too
            sys.path.remove(entry)


@contextmanager
def _quiet_export_log() -> Iterator[list[BaseException]]:
    """Collects the causes that ``torch.export`` logs with a traceback before it raises a vague error."""
    causes: list[BaseException] = []

    def collect(record: logging.LogRecord) -> bool:
        if record.exc_info and record.exc_info[1] is not None:
            causes.append(record.exc_info[1])
            return False
        return True

    logger = logging.getLogger("torch.export")
    logger.addFilter(collect)
    try:
        yield causes
    finally:
        logger.removeFilter(collect)


def _brief(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _described(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(type(item).__name__ for item in value)})"
    return type(value).__name__
