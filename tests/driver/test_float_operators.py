"""Operators of the folded module get the reasons that quantization gave for them."""

from __future__ import annotations

import numpy as np
import tvm
from qc_modules import const
from tvm import relax

from qcompiler.driver.float_operators import float_operators
from qcompiler.runtime.manifest import FloatRecord


def module(**places: str) -> tvm.IRModule:
    """A module that computes each operator under the name of its place."""
    ones = const(np.ones(4, np.float32))
    calls = {
        "layer_norm": lambda x: relax.op.nn.layer_norm(x, ones, ones, axes=[-1]),
        "softmax": relax.op.nn.softmax,
        "exp": relax.op.exp,
    }
    builder = relax.BlockBuilder()
    x = relax.Var("x", relax.TensorType((2, 4), "float32"))
    with builder.function("main", [x]):
        with builder.dataflow():
            y = x
            for place, operator in places.items():
                y = builder.emit(calls[operator](y), place)
            y = builder.emit_output(y)
        builder.emit_func_output(y)
    return builder.get()


def test_the_operators_own_reason_goes_before_that_of_a_module_around_it() -> None:
    refused = [
        FloatRecord("ne", "blocks.0, net.py:3", "not float32"),
        FloatRecord("layer_norm", "blocks.0.norm, net.py:4", "no integer kernel"),
        FloatRecord("softmax", "blocks.0, net.py:5", "no softmax"),
    ]
    made = module(blocks_0_norm="layer_norm", blocks_012="softmax", blocks_0_other="exp")
    found = float_operators(made, {}, refused)
    assert [(f.operator, f.reason) for f in found] == [
        ("layer_norm", "no integer kernel"),
        ("softmax", "no softmax"),
        ("exp", "not float32"),  # of several around it the first cause
    ]


def test_the_parts_of_attention_have_its_reason() -> None:
    refused = [
        FloatRecord("select", "a.b", "select"),
        FloatRecord("scaled_dot_product_attention", "a.b", "attention"),
    ]
    (found,) = float_operators(module(a_b3="softmax"), {}, refused)
    assert found.reason == "attention"


def test_other_places_reasons_are_not_taken() -> None:
    refused = [FloatRecord("conv2d", "blocks.1", "keep_float")]
    (found,) = float_operators(module(blocks_2="exp"), {}, refused)
    assert found.reason == "it works on tensors that are not quantized"
    (found,) = float_operators(module(blocks_2="exp"), {"blocks_2": "noted"}, refused)
    assert found.reason == "noted"
