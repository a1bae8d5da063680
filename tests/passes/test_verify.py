from __future__ import annotations

import numpy as np
import pytest
from qc_modules import const, dq, make, q
from tvm import relax

from qcompiler import operators
from qcompiler.errors import PassError, UnsupportedOperatorError
from qcompiler.passes import verify

REALS, BYTES = ((2, 8), "float32"), ((2, 8), "uint8")


def dense(
    x: relax.Expr, multiplier: float = 0.1, bound: int = 1000, lo: int = 0, hi: int = 255
) -> relax.Call:
    args = [
        x,
        const(np.ones((4, 8), np.int8)),
        const(np.zeros(4, np.int32)),
        const(np.full(4, multiplier, np.float32)),
    ]
    return operators.call(
        "qc.dense",
        args,
        zero_point=0,
        lo=lo,
        hi=hi,
        residual_shift=0,
        out_dtype="uint8",
        accumulator_bound=bound,
    )


def test_canonical_refuses_signed_activations() -> None:
    with pytest.raises(PassError, match=r"after phase canonical, .* quantizes to int8; allowed: uint8"):
        verify.canonical(make(lambda e, x: q(x, 0.1, 0, "int8"), REALS))
    verify.canonical(make(lambda e, x: q(x, 0.1), REALS))


@pytest.mark.parametrize(
    "build", [lambda e, x: dq(x, 0.1), lambda e, x: q(e(relax.op.astype(x, "float32")), 0.1)]
)
def test_integer_refuses_what_is_left_of_quantization(build) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PassError, match=r"after phase integer, .*relax\.(de)?quantize\) is still there"):
        verify.integer(make(build, BYTES))


@pytest.mark.parametrize(
    ("attributes", "fault"),
    [
        ({"multiplier": -0.1}, "multiplier that is negative or not finite"),
        ({"multiplier": np.inf}, "multiplier that is negative or not finite"),
        ({"multiplier": np.nan}, "multiplier that is negative or not finite"),
        ({"bound": 2**31}, "accumulators up to 2147483648, beyond int32"),
        ({"lo": -1}, r"bounds \[-1, 255\]"),
        ({"lo": 9, "hi": 8}, r"bounds \[9, 8\]"),
        ({"hi": 256}, r"bounds \[0, 256\]"),
    ],
)
def test_integer_refuses_constants_out_of_range(attributes, fault) -> None:  # type: ignore[no-untyped-def]
    verify.integer(make(lambda e, x: dense(x), BYTES))
    with pytest.raises(PassError, match=fault):
        verify.integer(make(lambda e, x: dense(x, **attributes), BYTES))


def test_physical_refuses_operators_without_a_kernel() -> None:
    with pytest.raises(PassError, match=r"after phase physical, .*relax\.exp\) has no kernel"):
        verify.physical(make(lambda e, x: relax.op.exp(x), REALS))
    verify.physical(make(lambda e, x: relax.op.reshape(x, (16,)), REALS))


def test_a_module_that_is_not_well_formed_is_refused() -> None:
    module = make(lambda e, x: relax.op.add(x, x), REALS)
    main = module["main"]
    bad = relax.Function([], main.body, main.ret_ty, is_pure=True)
    module.update_func(module.get_global_var("main"), bad)
    with pytest.raises(PassError, match="after phase canonical the module is not well-formed"):
        verify.canonical(module)


def test_sorts_and_cumulative_sums_are_refused_on_gpus() -> None:
    module = make(lambda e, x: relax.op.cumsum(x, axis=1), ((2, 5), "float32"))
    with pytest.raises(UnsupportedOperatorError, match=r"cumsum at .* has no kernel for GPUs; leave it to"):
        verify.on_gpus(module)
    verify.on_gpus(make(lambda e, x: relax.op.exp(x), ((2, 5), "float32")))
