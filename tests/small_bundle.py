"""A hand-made Relax module, compiled and linked, for tests that need a library but not the pipeline.

``main(x: float32[4, 32], b: float32[64])`` returns, with ``w`` of :func:`weights`,
``y = relu(x) @ w + b``, ``z = relu(y)``, ``x`` itself, a constant, and ``z`` again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tvm
from tvm import relax

from qcompiler.driver import bundle
from qcompiler.driver.link import link_shared
from qcompiler.passes import pipeline
from qcompiler.passes.lift_constants import LiftConstants
from qcompiler.runtime import (
    FloatRecord,
    LayerRecord,
    Manifest,
    TargetNeeds,
    TensorSpec,
    Versions,
    read_manifest,
)
from qcompiler.runtime.library import sha256
from qcompiler.runtime.manifest import CONSTANTS_NAME
from qcompiler.runtime.manifest_text import manifest_text

SCALE = 0.5


def weights(seed: int = 0) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((32, 64)).astype(np.float32)


def constant() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.arange(6, dtype=np.float32)


def constants(seed: int = 0) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """What stands in ``constants.bin``: what is large, and what is returned."""
    return [weights(seed), constant()]


def inputs(seed: int = 1) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((4, 32)).astype(np.float32), rng.standard_normal(64).astype(np.float32)


def expected(x: Any, b: Any, seed: int = 0) -> tuple[Any, ...]:
    y = np.maximum(x, 0) @ weights(seed) + b
    return y, np.maximum(y, 0), x, constant(), np.maximum(y, 0)


def module(seed: int = 0) -> tvm.IRModule:
    return in_parallel(relax.transform.LegalizeOps()(module_before_kernels(seed)))


def module_before_kernels(seed: int = 0) -> tvm.IRModule:
    x = relax.Var("x", relax.TensorType([4, 32], "float32"))
    b = relax.Var("b", relax.TensorType([64], "float32"))
    builder = relax.BlockBuilder()
    with builder.function("main", [x, b]):
        with builder.dataflow():
            y = builder.emit(relax.op.matmul(relax.op.nn.relu(x), relax.const(weights(seed))))
            y = builder.emit(relax.op.add(y, b))
            z = builder.emit(relax.op.nn.relu(y))
            result = builder.emit_output(relax.Tuple([y, z, x, relax.const(constant()), z]))
        builder.emit_func_output(result)
    return builder.get()


def in_parallel(legal: tvm.IRModule) -> tvm.IRModule:
    """The module with the outermost loop of every kernel run by the thread pool."""
    result = tvm.IRModule(legal.functions, attrs=legal.attrs)
    for name, function in legal.functions_items():
        if isinstance(function, tvm.tirx.PrimFunc):
            schedule = tvm.s_tir.Schedule(function)
            for block in schedule.get_child_blocks(schedule.get_sblock("root")):
                schedule.parallel(schedule.get_loops(block)[0])
            result[name] = schedule.mod["main"]
    return result


def manifest() -> Manifest:
    return Manifest(
        inputs=(TensorSpec("x", (4, 32), "float32", SCALE, 128), TensorSpec("b", (64,), "float32")),
        outputs=(
            TensorSpec("y", (4, 64), "float32"),
            TensorSpec("z", (4, 64), "float32"),
            TensorSpec("same", (4, 32), "float32"),
            TensorSpec("constant", (6,), "float32"),
            TensorSpec("twin", (4, 64), "float32"),
        ),
        target={
            "name": "x86-avx2",
            "family": "x86",
            "required_features": ["avx2", "fma"],
            "vector_bits": 256,
        },
        versions=Versions("0.1.0", tvm.__version__, _ffi_version(), "2.13.0", "3.11.7"),
        layers=(LayerRecord("fc", "matmul", "float32", (4, 64), macs=4 * 32 * 64, function="matmul"),),
        float_operators=(FloatRecord("matmul", "fc", "the test wants it so"),),
        alternatives=(TargetNeeds("x86-avx512", ("avx512f",)), TargetNeeds("x86-sse", ("sse2",))),
    )


def library(path: Path, seed: int = 0) -> Path:
    """The module's library; its arguments after the inputs are :func:`constants`."""
    target = tvm.target.Target({"kind": "llvm", "mcpu": "x86-64-v3", "num-cores": 2})
    lift = LiftConstants()
    lifted = lift(pipeline.to_machine(module(seed), target, pipeline.Dump(None)))
    assert [c.tobytes() for c in lift.constants] == [c.tobytes() for c in constants(seed)]
    relax.build(lifted, target, relax_pipeline=None).export_library(str(path), fcompile=link_shared)
    return path


def write(destination: Path, scratch: Path, seed: int = 0, **changes: Any) -> Path:
    """Compiles the module and writes its bundle; ``changes`` replace fields of the manifest."""
    made = library(scratch / f"library{seed}.so", seed)
    complete = dataclasses.replace(manifest(), constants=bundle.constant_specs(constants(seed)))
    extra = {CONSTANTS_NAME: bundle.constants_bytes(constants(seed)), "NOTES.md": b"A test's bundle.\n"}
    return bundle.write(destination, made, dataclasses.replace(complete, **changes), extra)


def rewrite(folder: Path, change: Callable[[Manifest], Manifest], rehash: bool = False) -> None:
    """Changes a bundle's manifest as whoever can write to it can: all digests of it are right again.

    With ``rehash`` those of the other files, too.
    """
    made = change(read_manifest(folder))
    if rehash:
        made = dataclasses.replace(made, files={name: sha256(folder / name) for name in made.files})
    content = made.to_json().encode()
    (folder / "manifest.json").write_bytes(content)
    (folder / "manifest.txt").write_bytes(manifest_text(made, content))


def _ffi_version() -> str:
    import tvm_ffi

    return str(tvm_ffi.__version__)
