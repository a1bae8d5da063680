"""Modules of a few calls, built by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from qcompiler import operators
from qcompiler.reference import interpret

Build = Callable[[Any, list[Any]], Any]


def make_module(build: Build, inputs: Sequence[np.ndarray]) -> tvm.IRModule:
    """Module whose ``main`` takes arrays like ``inputs`` and returns ``build(builder, variables)``."""
    builder = relax.BlockBuilder()
    variables = [relax.Var(f"x{i}", relax.TensorType(a.shape, a.dtype.name)) for i, a in enumerate(inputs)]
    with builder.function("main", variables):
        with builder.dataflow():
            output = builder.emit_output(build(builder, variables))
        builder.emit_func_output(output)
    return builder.get()


def run_qc(
    name: str, inputs: Sequence[np.ndarray], constants: Sequence[np.ndarray] = (), **attrs: Any
) -> np.ndarray:
    """Result of integer operator ``name`` on ``inputs`` followed by ``constants``; it must be exact."""

    def build(_: Any, variables: list[Any]) -> Any:
        return operators.call(name, [*variables, *(relax.const(c, c.dtype.name) for c in constants)], **attrs)

    (value,) = interpret(make_module(build, inputs), inputs)
    assert value.exact
    return value.array


@pytest.fixture(name="make_module")
def _make_module() -> Callable[..., tvm.IRModule]:
    return make_module


@pytest.fixture(name="run_qc")
def _run_qc() -> Callable[..., np.ndarray]:
    return run_qc
