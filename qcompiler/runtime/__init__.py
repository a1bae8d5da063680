"""Runs compiled models. Needs NumPy and ``apache-tvm-ffi``; imports neither torch nor TVM's compiler."""

from qcompiler.runtime.bundle import load, read_manifest, verify
from qcompiler.runtime.cpu import cpu_features, cpu_name
from qcompiler.runtime.manifest import (
    ConstantSpec,
    FloatRecord,
    LayerRecord,
    Manifest,
    TargetNeeds,
    TensorSpec,
    Versions,
)
from qcompiler.runtime.model import Model

__all__ = [
    "ConstantSpec",
    "FloatRecord",
    "LayerRecord",
    "Manifest",
    "Model",
    "TargetNeeds",
    "TensorSpec",
    "Versions",
    "cpu_features",
    "cpu_name",
    "load",
    "read_manifest",
    "verify",
]
