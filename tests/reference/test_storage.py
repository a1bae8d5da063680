"""The reference module as a file."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from qcompiler import operators
from qcompiler.errors import BundleError
from qcompiler.reference import interpret, load, save

X = np.arange(6, dtype=np.uint8).reshape(1, 6)


@pytest.fixture(name="module")
def _module(make_module: Any) -> tvm.IRModule:
    weight = np.arange(-9, 9, dtype=np.int8).reshape(3, 6)
    constants = [relax.const(c) for c in (weight, np.ones(3, np.int32), np.full(3, 1 / 3, np.float32))]
    attrs = {"zero_point": 5, "lo": 0, "hi": 255, "residual_shift": 0, "out_dtype": "uint8"}

    def build(builder: Any, v: list[Any]) -> Any:
        x = builder.emit(operators.call("qc.dense", [v[0], *constants], **attrs))
        return builder.emit(operators.call("qc.dequantize", [x], scale=0.1, zero_point=5))

    module: tvm.IRModule = make_module(build, [X])
    return module


def test_round_trip(module: tvm.IRModule, tmp_path: Path) -> None:
    save(module, tmp_path / "a.json.gz")
    loaded = load(tmp_path / "a.json.gz")
    tvm.ir.assert_structural_equal(module, loaded)
    (before,), (after,) = interpret(module, [X]), interpret(loaded, [X])
    np.testing.assert_array_equal(before.array, after.array, strict=True)


def test_the_bytes_depend_on_the_module_alone(module: tvm.IRModule, tmp_path: Path) -> None:
    save(module, tmp_path / "a.json.gz")
    save(load(tmp_path / "a.json.gz"), tmp_path / "b.json.gz")
    data = (tmp_path / "a.json.gz").read_bytes()
    assert data == (tmp_path / "b.json.gz").read_bytes()
    assert data[4:8] == bytes(4), "the time of writing is in the header"


def test_damaged_files_are_refused(module: tvm.IRModule, tmp_path: Path) -> None:
    path = tmp_path / "a.json.gz"
    with pytest.raises(BundleError, match="cannot be read"):
        load(path)
    save(module, path)
    data = path.read_bytes()
    path.write_bytes(data[:-20])
    with pytest.raises(BundleError, match="cannot be read"):
        load(path)
    path.write_bytes(b"no gzip at all")
    with pytest.raises(BundleError, match="cannot be read"):
        load(path)
    path.write_bytes(gzip.compress(b'{"no": "module"}'))
    with pytest.raises(BundleError, match="holds no module"):
        load(path)
    path.write_bytes(gzip.compress(tvm.ir.save_json(relax.const(1.0)).encode()))
    with pytest.raises(BundleError, match="expected an IRModule"):
        load(path)
