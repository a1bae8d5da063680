"""Relax's data movement in the interpreter against TVM's own compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax

from qcompiler.errors import VerificationError
from qcompiler.reference import interpreter
from qcompiler.reference.movement import nearest_indices

op = relax.op
X = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 5)).astype(np.uint8)


def compiled(module: tvm.IRModule, inputs: list[np.ndarray]) -> list[np.ndarray]:
    target = tvm.target.Target({"kind": "llvm", "opt-level": 2})
    with target:
        module = relax.transform.LegalizeOps()(module)
    machine = relax.VirtualMachine(tvm.compile(module, target=target), tvm.cpu())
    result = machine["main"](*(tvm.runtime.tensor(i) for i in inputs))
    return [result.numpy()] if isinstance(result, tvm.runtime.Tensor) else [r.numpy() for r in result]


CASES: dict[str, Callable[[Any], Any]] = {
    "reshape": lambda x: op.reshape(x, (2, -1, 10)),
    "flatten": op.flatten,
    "expand_dims": lambda x: op.expand_dims(x, [0, 3]),
    "broadcast_to": lambda x: op.broadcast_to(x, (3, 2, 4, 6, 5)),
    "permute_dims": lambda x: op.permute_dims(x, [0, 2, 3, 1]),
    "reverse_dims": op.permute_dims,
    "concat": lambda x: op.concat([x, x], axis=-1),
    "split_sections": lambda x: op.split(x, 2, axis=1),
    "split_unevenly": lambda x: op.split(x, 3, axis=3),
    "split_indices": lambda x: op.split(x, [1, 4], axis=2),
    "slice": lambda x: op.strided_slice(x, [1, 2], [1, 0], [4, 6], [2, 3]),
    "slice_from_the_end": lambda x: op.strided_slice(x, [3], [-3], [-1]),
    "slice_beyond_the_end": lambda x: op.strided_slice(x, [2], [2], [2**40]),
    "slice_backwards": lambda x: op.strided_slice(x, [2], [4], [1], [-2]),
    "pad": lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 2, 3, 0], pad_value=7),
    "pad_reflect": lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 2, 3, 0], pad_mode="reflect"),
    "pad_replicate": lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 2, 3, 0], pad_mode="replicate"),
    "pad_circular": lambda x: op.nn.pad(x, [0, 0, 0, 0, 1, 2, 3, 0], pad_mode="circular"),
    "astype_int8": lambda x: op.astype(x, "int8"),
    "astype_float": lambda x: op.astype(x, "float32"),
    "take": lambda x: op.take(x, relax.const(np.array([[2, 0], [1, 1]]), "int64"), axis=1),
    "take_one": lambda x: op.take(x, relax.const(2, "int64"), axis=1),
    "take_one_or_the_nearest": lambda x: op.take(x, relax.const(2, "int64"), axis=1, mode="clip"),
    "take_flat": lambda x: op.take(op.reshape(x, (240,)), relax.const(np.array([7, 239]), "int64"), axis=0),
    "resize": lambda x: op.image.resize2d(x, (12, 15), method="nearest_neighbor"),
    "resize_nhwc": lambda x: op.image.resize2d(x, (8, 12), layout="NHWC", method="nearest_neighbor"),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_tvm_without_asking_it(case: str, make_module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_module(lambda builder, v: builder.emit(CASES[case](v[0])), [X])
    expected = compiled(module, [X])
    monkeypatch.setattr(interpreter, "tvm_kernel", None)
    values = interpreter.interpret(module, [X])
    assert len(values) == len(expected)
    for value, array in zip(values, expected, strict=True):
        assert value.exact
        np.testing.assert_array_equal(value.array, array, strict=True)


def test_squeeze(make_module: Any) -> None:
    x = X[:1, :, :, :1]
    module = make_module(lambda builder, v: builder.emit(op.squeeze(v[0], [0, 3])), [x])
    (value,) = interpreter.interpret(module, [x])
    np.testing.assert_array_equal(value.array, x[0, :, :, 0], strict=True)


MODES = [
    ("half_pixel", "round"),
    ("half_pixel", ""),
    ("pytorch_half_pixel", "round_prefer_floor"),
    ("pytorch_half_pixel", "round_prefer_ceil"),
    ("align_corners", ""),
    ("asymmetric", "floor"),
    ("asymmetric", "ceil"),
    ("tf_half_pixel_for_nn", "floor"),
]


@pytest.mark.parametrize(("mode", "rounding"), MODES)
def test_nearest_indices_are_tvms(mode: str, rounding: str, make_module: Any) -> None:
    pairs = [(4, 8), (7, 21), (8, 4), (9, 3), (5, 7), (10, 3), (13, 16)]
    ramps = [np.arange(i, dtype=np.float32).reshape(1, 1, i, 1).repeat(2, 3) for i, _ in pairs]

    def build(builder: Any, variables: list[Any]) -> Any:
        return relax.Tuple(
            [
                builder.emit(
                    op.image.resize2d(
                        v,
                        (out, 2),
                        method="nearest_neighbor",
                        coordinate_transformation_mode=mode,
                        rounding_method=rounding,
                    )
                )
                for v, (_, out) in zip(variables, pairs, strict=True)
            ]
        )

    for (extent, out), expected in zip(pairs, compiled(make_module(build, ramps), ramps), strict=True):
        actual = nearest_indices(extent, out, mode, rounding)
        assert actual is not None
        assert actual.tolist() == expected[0, 0, :, 0].astype(int).tolist(), (extent, out)


def test_unknown_nearest_forms_are_left_to_tvm() -> None:
    assert nearest_indices(4, 8, "tf_crop_and_resize", "round") is None
    assert nearest_indices(4, 1, "align_corners", "round") is None
    assert nearest_indices(4, 8, "half_pixel", "upwards") is None


def test_take_out_of_range_raises(make_module: Any) -> None:
    module = make_module(lambda b, v: b.emit(op.take(v[0], v[1], axis=0)), [X, np.array([0])])
    for bad in (-1, 2):
        with pytest.raises(VerificationError, match="the axis has 2 entries"):
            interpreter.interpret(module, [X, np.array([bad])])
