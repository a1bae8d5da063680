"""The kernels of a model that can be tuned, each with the layers that share it."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from tvm import relax
from tvm.ir import Constant

from qcompiler import operators
from qcompiler.driver.tuning.neutral import neutral
from qcompiler.driver.tuning.trial import Array
from qcompiler.errors import ConfigError
from qcompiler.passes.graph import array, constant, dtype
from qcompiler.passes.lower_integer import Layer, Tunable, macs
from qcompiler.passes.pipeline import Physical
from qcompiler.passes.store_signed import activations
from qcompiler.reference import interpret
from qcompiler.targets.cpu.storage import SIGNED
from qcompiler.targets.workload import Workload

COPIES_LIMIT = 8
"""Copies of the weights that a measurement goes through at most."""

COPIES_SHARE = 4
"""The copies together are this many times as large as the level-2 cache, up to the limit."""


@dataclass(frozen=True)
class Task:
    """A kernel to tune.

    Attributes:
        tunable: the kernel of the first layer that has it, with that layer's constants, and what it must compute.
        neutral: the kernel as the log knows it.
        layers: the layers that run it.
    """

    tunable: Tunable
    neutral: Workload
    layers: tuple[str, ...]

    @property
    def workload(self) -> Workload:
        """The kernel with the first layer's constants."""
        return self.tunable.workload

    @property
    def name(self) -> str:
        """What people call it."""
        return self.workload.name

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one layer."""
        return macs(self.tunable.call)

    @property
    def weight(self) -> int:
        """How often a run of the model runs it."""
        return len(self.layers)


def extract(physical: Physical, pattern: str | None = None) -> list[Task]:
    """The tasks of a lowered model, in the order their first layers run.

    Args:
        physical: the model with default schedules.
        pattern: only tasks of which a layer's name matches, as a shell pattern: ``layer1.*``.

    Raises:
        ConfigError: no layer matches.
    """
    users: dict[str, list[str]] = {}
    for layer in physical.layers:
        if layer.kernel in physical.tunable:
            users.setdefault(layer.kernel, []).append(layer.name)
    groups: dict[int, list[tuple[Workload, Tunable, list[str]]]] = {}
    for kernel, names in users.items():
        tunable = physical.tunable[kernel]
        known = neutral(tunable.workload)
        alike = groups.setdefault(int(tvm_ffi.structural_hash(known.function)), [])
        for other, _, layers in alike:
            if tvm_ffi.structural_equal(other.function, known.function):
                layers.extend(names)
                break
        else:
            alike.append((known, tunable, list(names)))
    tasks = [
        Task(tunable, known, tuple(layers)) for alike in groups.values() for known, tunable, layers in alike
    ]
    if pattern is None:
        return tasks
    chosen = [t for t in tasks if any(fnmatch.fnmatchcase(name, pattern) for name in t.layers)]
    if not chosen:
        raise ConfigError(f"no layer matches {pattern!r}; {_known_layers(physical.layers, physical.tunable)}")
    return chosen


def _known_layers(layers: Sequence[Layer], tunable: Any) -> str:
    names = [layer.name for layer in layers if layer.kernel in tunable]
    return f"layers that can be tuned: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"


@dataclass(frozen=True)
class Prepared:
    """A task's files for the workers.

    Attributes:
        module: the kernel with the layer's constants, as JSON.
        data: its arguments, and what it must give.
        copies: copies of each argument, output last.
        folder: where candidates' libraries go.
    """

    module: str
    data: str
    copies: tuple[int, ...]
    folder: Path


def prepare(task: Task, folder: Path, l2_bytes: int) -> Prepared:
    """Writes what workers need to check and time candidates of ``task``.

    The arguments are the layer's packed constants, and random bytes, 0 and 255 among them, for its activations. What the
    kernel must give comes from the reference interpreter. Both are as the target stores activations.
    """
    folder.mkdir(parents=True)
    call = task.tunable.call
    rng = np.random.default_rng(0)
    inputs = [_random(rng, _dims(arg)) for arg in call.args if not isinstance(arg, Constant)]
    (value,) = interpret(_only(call), inputs)
    signed = str(call.attrs.get("storage", "uint8")) == SIGNED.dtype
    waiting = [_signed(x) if signed else x for x in inputs]
    expected = _signed(value.array) if signed and value.array.dtype == np.uint8 else value.array
    arrays: list[Array] = []
    constants = 0
    for arg, buffer in zip(task.tunable.args, task.workload.function.params[:-1], strict=True):
        shape = [int(d) for d in buffer.shape]
        if isinstance(arg, Constant):
            arrays.append(np.ascontiguousarray(arg.value.numpy()))
            constants += arrays[-1].nbytes
        else:
            arrays.append(waiting.pop(0).reshape(shape))
        assert arrays[-1].shape == tuple(shape), (task.name, arrays[-1].shape, shape)
    assert not waiting, task.name
    output = task.workload.function.params[-1]
    assert expected.size == prod(int(d) for d in output.shape), task.name
    count = int(np.clip(-(-COPIES_SHARE * l2_bytes // max(constants, 1)), 1, COPIES_LIMIT))
    copies = tuple(count if isinstance(arg, Constant) else 1 for arg in task.tunable.args)
    data = folder / "data.npz"
    named: dict[str, Any] = {f"a{k}": a for k, a in enumerate(arrays)}
    np.savez(data, expected=expected, **named)
    module = folder / "kernel.json"
    module.write_text(tvm.ir.save_json(task.workload.module), encoding="utf-8")
    return Prepared(str(module), str(data), (*copies, 1), folder)


def _dims(expr: relax.Expr) -> tuple[int, ...]:
    return tuple(int(d) for d in expr.ty.shape)


def _random(rng: np.random.Generator, shape: tuple[int, ...]) -> Array:
    values = rng.integers(0, 256, shape, np.uint8)
    values.reshape(-1)[:2] = (0, 255)[: values.size]
    return values


def _signed(values: Array) -> Array:
    """Activations q of uint8 as q - 128 in int8: the top bit is flipped."""
    return (values ^ np.uint8(SIGNED.offset)).view(np.int8)


def _unsigned(values: Array) -> Array:
    """The inverse of ``_signed``."""
    return np.ascontiguousarray(values).view(np.uint8) ^ np.uint8(SIGNED.offset)


def _only(call: relax.Call) -> tvm.IRModule:
    """A module whose ``main`` is ``call`` of its parameters and of the call's constants, on activations of uint8."""
    attrs = {str(k): v for k, v in call.attrs.items() if str(k) != "storage"}
    builder = relax.BlockBuilder()
    params: list[relax.Var] = []
    args: list[relax.Expr] = []
    for k, arg in enumerate(call.args):
        if not isinstance(arg, Constant):
            params.append(relax.Var(f"x{k}", relax.TensorType(_dims(arg), "uint8")))
            args.append(params[-1])
        elif k in activations(call) and dtype(arg) == SIGNED.dtype:
            args.append(constant(_unsigned(array(arg))))
        else:
            args.append(arg)
    with builder.function("main", params):
        with builder.dataflow():
            out = builder.emit_output(operators.call(str(call.op.name), args, **attrs))
        builder.emit_func_output(out)
    return builder.get()


def file_name(text: str) -> str:
    """``text`` without what a file's name cannot hold."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_")[:60]
