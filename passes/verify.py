"""Checks between phases: what a phase promises and the next relies on."""

from __future__ import annotations

import tvm
from tvm import relax

from qcompiler.errors import PassError, UnsupportedOperatorError
from qcompiler.operators import INTEGER_OPERATORS
from qcompiler.passes.graph import MAIN, array, bindings, dtype, is_tensor, op_name
from qcompiler.passes.lower_sorts import SORTS


def _refuse(phase: str, binding: relax.VarBinding, fault: str) -> None:
    raise PassError(
        f"after phase {phase}, {binding.var.name} ({op_name(binding.value)}) {fault}; report this as a bug"
    )


def well_formed(module: tvm.IRModule, phase: str) -> None:
    try:
        relax.analysis.well_formed(module)
    except (RuntimeError, ValueError, TypeError) as error:
        fault = str(error).strip().splitlines()[-1]
        raise PassError(
            f"after phase {phase} the module is not well-formed: {fault}; report this as a bug"
        ) from error
    if not isinstance(module[MAIN], relax.Function):
        raise PassError(f"after phase {phase} there is no function {MAIN}; report this as a bug")


def canonical(module: tvm.IRModule) -> None:
    """Quantized activations are uint8; shapes are static."""
    well_formed(module, "canonical")
    for binding in bindings(module):
        if op_name(binding.value) == "relax.quantize" and dtype(binding.value) != "uint8":
            _refuse("canonical", binding, f"quantizes to {dtype(binding.value)}; allowed: uint8")
        if is_tensor(binding.var) and binding.var.ty.shape is None:
            _refuse("canonical", binding, "has no static shape")


def integer(module: tvm.IRModule) -> None:
    """No quantize or dequantize of Relax is left; constants of integer operators are finite and in range."""
    well_formed(module, "integer")
    for binding in bindings(module):
        name = op_name(binding.value)
        if name in ("relax.quantize", "relax.dequantize"):
            _refuse("integer", binding, "is still there")
        if name not in INTEGER_OPERATORS:
            continue
        attrs = binding.value.attrs
        if "lo" in attrs and not 0 <= int(attrs["lo"]) <= int(attrs["hi"]) <= 255:
            _refuse(
                "integer", binding, f"has bounds [{attrs['lo']}, {attrs['hi']}]; allowed: within [0, 255]"
            )
        if name in ("qc.conv2d", "qc.dense"):
            multiplier = array(binding.value.args[3])
            if not ((multiplier >= 0) & (multiplier < 3.0e38)).all():
                _refuse("integer", binding, "has a multiplier that is negative or not finite")
            if int(attrs["accumulator_bound"]) >= 2**31:
                _refuse(
                    "integer", binding, f"has accumulators up to {attrs['accumulator_bound']}, beyond int32"
                )


_SCANS = SORTS | {"relax.cumsum", "relax.cumprod"}


def on_gpus(module: tvm.IRModule) -> None:
    """Refuses what has kernels for CPUs only.

    Raises:
        UnsupportedOperatorError: it is in the module.
    """
    for binding in bindings(module):
        name = op_name(binding.value)
        if name in _SCANS:
            raise UnsupportedOperatorError(
                f"operator {name.removeprefix('relax.')} at {binding.var.name} has no kernel for GPUs; leave it to whoever "
                "reads the model's output, or compile for a CPU"
            )


def physical(module: tvm.IRModule) -> None:
    """Every binding calls a kernel, or only renames, reshapes or groups."""
    well_formed(module, "physical")
    allowed = {
        "relax.call_tir",
        "relax.reshape",
        "relax.shape_of",
        "relax.call_pure_packed",
        "relax.call_dps_packed",
        "",
    }
    for binding in bindings(module):
        if op_name(binding.value) not in allowed:
            _refuse("physical", binding, "has no kernel")
