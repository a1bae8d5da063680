"""What ``manifest.json`` of a bundle says, as frozen dataclasses that are checked when they are made."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qcompiler.errors import BundleError

FORMAT_VERSION = 4
"""Version of the bundle's format; a reader refuses every other one."""

MANIFEST_NAME = "manifest.json"
LIBRARY_NAME = "model.so"
CONSTANTS_NAME = "constants.bin"
RUNTIME_LIBRARY_NAME = "lib/libtvm_runtime.so"
FFI_LIBRARY_NAME = "lib/libtvm_ffi.so"
GPU_LIBRARY_NAMES = ("lib/libcudart.so.13", "lib/libtvm_runtime_cuda.so")
"""What a bundle for GPUs has besides, in the order of loading."""
REQUIRED_FILES = (LIBRARY_NAME, RUNTIME_LIBRARY_NAME, FFI_LIBRARY_NAME)
"""Files without which a bundle cannot run, as paths relative to the bundle."""

CONSTANT_ALIGNMENT = 64
"""Bytes. Kernels load whole vector registers with aligned instructions."""

_ARCHITECTURE = re.compile(r"sm_[0-9]{2,3}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of the model.

    Attributes:
        name: name of the input or output; unique among its kind.
        shape: extents; every one is known.
        dtype: NumPy's name, such as ``float32``.
        scale: where the tensor is quantized, or is quantized first or dequantized last, its scale; else None.
        zero_point: the zero point that belongs to ``scale``.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float | None = None
    zero_point: int | None = None

    def __post_init__(self) -> None:
        _require(bool(self.name), "a tensor has an empty name")
        _require(all(d >= 0 for d in self.shape), f"tensor {self.name!r} has a negative extent: {self.shape}")
        _require(_is_dtype(self.dtype), f"tensor {self.name!r} has dtype {self.dtype!r}, unknown to NumPy")
        _require(
            (self.scale is None) == (self.zero_point is None),
            f"tensor {self.name!r} has one of scale and zero_point; it must have both or none",
        )
        _require(
            self.scale is None or (math.isfinite(self.scale) and self.scale > 0),
            f"tensor {self.name!r} has scale {self.scale}; it must be positive and finite",
        )


@dataclass(frozen=True)
class ConstantSpec:
    """A constant of the model in ``constants.bin``: an argument of its main function after the inputs.

    Attributes:
        shape: extents.
        dtype: NumPy's name, such as ``int8``.
        offset: where its elements start in the file, in bytes; a multiple of 64.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int

    def __post_init__(self) -> None:
        _require(all(d >= 0 for d in self.shape), f"a constant has a negative extent: {self.shape}")
        _require(_is_dtype(self.dtype), f"a constant has dtype {self.dtype!r}, unknown to NumPy")
        _require(
            self.offset >= 0 and self.offset % CONSTANT_ALIGNMENT == 0,
            f"a constant has offset {self.offset}; it must be a multiple of {CONSTANT_ALIGNMENT}",
        )

    @property
    def size(self) -> int:
        """Bytes of its elements."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class LayerRecord:
    """One operator of the compiled model.

    Attributes:
        name: place in the model, such as ``layer1.0.conv1``.
        operator: the operator, such as ``qc.conv2d``.
        dtype: dtype that the operator computes on, such as ``int8``.
        output_shape: extents of its output, in the model's own layout.
        macs: multiply-accumulates of one run.
        accumulator_bound: largest magnitude that its int32 accumulator can take, from the real weights and
            the input's range; None where there is no accumulator.
        instruction: multiply-accumulate instruction that it compiled to; None where there is none.
        instruction_count: how often ``instruction`` stands in the disassembly of ``function``.
        reason: why it is not tensorized; None if it is, or if it has nothing to tensorize.
        function: name of its kernel in the library; empty where it has none of its own.
        schedule: where its kernel's schedule comes from: ``tuned``, ``transferred`` from a similar kernel's, or
            ``default``; None for a kernel with one schedule only.
        arithmetic: formats of the activations, the weights and the sums of a convolution or matrix product, such as
            ``bfloat16 x bfloat16 -> float32``; None for any other operator.
        zero_weights: share of its int8 weights that are zero, which no kernel skips; None where it has no weights.
    """

    name: str
    operator: str
    dtype: str
    output_shape: tuple[int, ...]
    macs: int = 0
    accumulator_bound: int | None = None
    instruction: str | None = None
    instruction_count: int = 0
    reason: str | None = None
    function: str = ""
    schedule: str | None = None
    arithmetic: str | None = None
    zero_weights: float | None = None

    def __post_init__(self) -> None:
        for name in ("macs", "instruction_count"):
            value = getattr(self, name)
            _require(value >= 0, f"layer {self.name!r} has {name} {value}; it must not be negative")


@dataclass(frozen=True)
class FloatRecord:
    """An operator that was left in float.

    Attributes:
        operator: the operator, such as ``softmax``.
        place: where it stands in the model.
        reason: why it was not made integer.
    """

    operator: str
    place: str
    reason: str


@dataclass(frozen=True)
class OptimizationRecord:
    """An optimization of the quantized model that was tried.

    Attributes:
        name: the option that asks for it, such as ``adaptive_rounding``.
        before_db: signal to quantization noise of the model's outputs without it, in decibels, simulated on calibration
            samples that it was not fitted to; None if there is no noise.
        after_db: the same with it.
        kept: whether it is in the model; one that made the outputs worse is not.
        changed: how many layers or tensors it changed.
        refused: why it left others alone, with their number.
    """

    name: str
    before_db: float | None
    after_db: float | None
    kept: bool
    changed: int
    refused: tuple[str, ...] = ()


@dataclass(frozen=True)
class Versions:
    """Versions of the software that made the bundle."""

    qcompiler: str
    tvm: str
    tvm_ffi: str
    torch: str
    python: str


@dataclass(frozen=True)
class TargetNeeds:
    """Another target of the same family, named when a CPU cannot run the bundle.

    Attributes:
        name: the target's name.
        required_features: features, named as in ``/proc/cpuinfo``, that it needs.
    """

    name: str
    required_features: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything ``manifest.json`` says.

    Attributes:
        inputs: inputs of the model, in the order of its arguments.
        outputs: outputs of the model, nested tuples flattened.
        target: the fields of the target's description, as plain JSON; ``name``, ``family`` and
            ``required_features`` are always there.
        versions: versions of what made the bundle.
        constants: what ``constants.bin`` holds, in the order of the arguments; without any, there is no such file.
        layers: operators of the compiled model, in the order they run.
        float_operators: operators left in float.
        optimizations: what was tried to lower the error of quantization, in this order.
        tuned_threads: numbers of threads that tuned kernels were measured at; none if no kernel is tuned. The library
            runs on any number.
        alternatives: targets of the same family, fastest first, for the message to a CPU that lacks features.
        files: SHA-256, in hexadecimal, of every file of the bundle but the manifest, its text form and
            their signature, by relative path.
        format_version: version of the bundle's format.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    target: Mapping[str, Any]
    versions: Versions
    constants: tuple[ConstantSpec, ...] = ()
    layers: tuple[LayerRecord, ...] = ()
    float_operators: tuple[FloatRecord, ...] = ()
    optimizations: tuple[OptimizationRecord, ...] = ()
    tuned_threads: tuple[int, ...] = ()
    alternatives: tuple[TargetNeeds, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        for kind, specs in (("inputs", self.inputs), ("outputs", self.outputs)):
            names = [spec.name for spec in specs]
            _require(len(set(names)) == len(names), f"{kind} share a name: {', '.join(names)}")
        for key in ("name", "family"):
            _require(isinstance(self.target.get(key), str), f"target.{key} must be a string")
        features = self.target.get("required_features")
        _require(
            isinstance(features, list | tuple) and all(isinstance(f, str) for f in features),
            "target.required_features must be a list of strings",
        )
        architectures = self.target.get("architectures", [])
        _require(
            isinstance(architectures, list | tuple)
            and all(isinstance(a, str) and _ARCHITECTURE.fullmatch(a) for a in architectures)
            and (self.target["family"] == "cuda") == bool(architectures),
            "target.architectures must be a list such as ['sm_80'], for targets of the family cuda alone",
        )
        for path, digest in self.files.items():
            _require(
                bool(_SHA256.fullmatch(digest)), f"files[{path!r}] is {digest!r}; it must be a SHA-256 in hex"
            )

    @property
    def target_name(self) -> str:
        return str(self.target["name"])

    @property
    def required_features(self) -> tuple[str, ...]:
        """CPU features, named as in ``/proc/cpuinfo``, without which the library must not run."""
        return tuple(self.target["required_features"])

    @property
    def architectures(self) -> tuple[str, ...]:
        """GPU architectures that machine code is there for, ascending, as ``sm_80``; none without GPU code."""
        return tuple(self.target.get("architectures", ()))

    @property
    def least_capability(self) -> int | None:
        """The compute capability that the GPU code needs, as 80 for 8.0; None without GPU code."""
        return int(self.architectures[0].removeprefix("sm_")) if self.architectures else None

    def to_json(self) -> str:
        """The text of ``manifest.json``; equal manifests give equal texts."""
        return json.dumps(_encode(self), indent=2, sort_keys=True, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Reads the text of a ``manifest.json``.

        Raises:
            BundleError: the text is no JSON, of another format version, or a field is missing, unknown or
                ill-typed; the message names it.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise BundleError(
                f"manifest: not JSON: {error}; the bundle is damaged, compile it again"
            ) from error
        if not isinstance(data, dict) or "format_version" not in data:
            raise BundleError("manifest: no format_version; this is not a manifest of a qcompiler bundle")
        if data["format_version"] != FORMAT_VERSION:
            raise BundleError(
                f"bundle has format {data['format_version']}; this qcompiler reads format {FORMAT_VERSION}; "
                "compile the model again with this version, or load the bundle with the version that made it"
            )
        manifest: Manifest = _decode(cls, data, "manifest")
        return manifest


def _is_dtype(name: str) -> bool:
    try:
        np.dtype(name)
    except TypeError:
        return False
    return True


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise BundleError(f"manifest: {message}")


def _encode(value: Any) -> Any:
    """Dataclasses and tuples as JSON's objects and lists; a set, being unordered, as a sorted list."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _encode(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): _encode(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_encode(v) for v in value)
    if isinstance(value, list | tuple):
        return [_encode(v) for v in value]
    return value


def _decode(kind: Any, value: Any, place: str) -> Any:
    """``value`` of parsed JSON as ``kind``, a type annotation of this file; ``place`` names it in errors."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        (inner,) = (a for a in arguments if a is not type(None))
        return _decode(inner, value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise _mismatch(place, "a list", value)
        return tuple(_decode(arguments[0], v, f"{place}[{i}]") for i, v in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise _mismatch(place, "an object", value)
        return {k: _decode(arguments[1], v, f"{place}[{k!r}]") for k, v in value.items()}
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _decode_object(kind, value, place)
    # JSON writes the float 1.0 as 1.0, but a hand-made manifest may say 1; bool is an int to Python, not
    # here.
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _mismatch(place, f"of type {kind.__name__}", value)
    return value


def _decode_object(kind: type, value: Any, place: str) -> Any:
    if not isinstance(value, dict):
        raise _mismatch(place, "an object", value)
    known = _fields(kind)
    unknown = sorted(value.keys() - known.keys())
    if unknown:
        raise BundleError(f"{place}: unknown field {unknown[0]!r}; known: {', '.join(known)}")
    missing = sorted(known.keys() - value.keys())
    if missing:
        raise BundleError(f"{place}: field {missing[0]!r} is missing")
    return kind(**{name: _decode(known[name], item, f"{place}.{name}") for name, item in value.items()})


@functools.cache
def _fields(kind: type) -> dict[str, Any]:
    """The fields of a dataclass with their types."""
    hints = typing.get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _mismatch(place: str, expected: str, value: Any) -> BundleError:
    return BundleError(f"{place} must be {expected}, and is {value!r:.80}")
