"""Operators that the interpreter does not know: TVM compiles and runs the single call for the host."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import tvm
from tvm import relax

from qcompiler.errors import VerificationError
from qcompiler.reference.site import Array, Constant, Group, Kernel, Operand, Site, Slot

# Level 3 unrolls reductions until their registers spill.
_HOST = {"kind": "llvm", "opt-level": 2}
_LOWERED = frozenset({"relax.call_tir", "relax.call_tir_inplace", "relax.call_dps_packed"})


def tvm_kernel(site: Site, module: tvm.IRModule) -> Kernel:
    """Kernel of any call that TVM legalizes; ``module`` holds the tensor functions that it names.

    It is exact if no float comes in or goes out: integers are computed one way only.

    Raises:
        VerificationError: TVM cannot compile the call either.
    """
    machine = _compile(tvm.ir.save_json(_single_call(site, module)), site.name)

    def run(arrays: Sequence[Array]) -> tuple[Array, ...]:
        result = machine["main"](*(tvm.runtime.tensor(array) for array in arrays))
        return tuple(_flatten(result))

    dtypes = [leaf.dtype for leaf in site.tensors] + [dtype for _, dtype in site.outputs]
    return Kernel(run, exact=all(dtype == "bool" or dtype.startswith(("int", "uint")) for dtype in dtypes))


def _flatten(result: Any) -> list[Array]:
    if isinstance(result, tvm.runtime.Tensor):
        return [result.numpy()]
    return [array for field in result for array in _flatten(field)]


def _single_call(site: Site, module: tvm.IRModule) -> tvm.IRModule:
    """Module of one function: the tensors of the call as parameters, named by their order.

    Constants become parameters too, so that calls that differ in their weights alone share one executable.
    """
    builder = relax.BlockBuilder()
    parameters: list[Any] = []

    def argument(operand: Operand) -> Any:
        if isinstance(operand, Group):
            return relax.Tuple([argument(field) for field in operand.fields])
        if isinstance(operand, Slot | Constant):
            parameters.append(
                relax.Var(f"p{len(parameters)}", relax.TensorType(operand.shape, operand.dtype))
            )
            return parameters[-1]
        if isinstance(operand.expr, tvm.ir.GlobalVar):
            return builder.add_func(
                module[operand.expr].without_attr("global_symbol"), operand.expr.name_hint
            )
        return operand.expr

    arguments = [argument(operand) for operand in site.arguments]
    call = relax.Call(site.call.op, arguments, site.call.attrs, site.call.ty_args)
    with builder.function("main", parameters):
        builder.emit_func_output(builder.emit(call))
    return builder.get()


@lru_cache(maxsize=256)
def _compile(module_json: str, name: str) -> relax.VirtualMachine:
    """Keyed by the whole text of the module, so that two calls share an executable only if they are equal."""
    module = tvm.ir.load_json(module_json)
    target = tvm.target.Target(_HOST)
    try:
        with target:
            module = relax.backend.DispatchSortScan()(module)
            module = relax.transform.LegalizeOps()(module)
        left = _left_over(module)
        if not left:
            return relax.VirtualMachine(tvm.compile(module, target=target), tvm.cpu())
    # C++ checks raise RuntimeError, legalizations in Python any of the others.
    except (RuntimeError, ValueError, TypeError, AttributeError) as e:
        raise VerificationError(
            f"operator {name}: the interpreter has no form of it and TVM cannot compile it"
        ) from e
    raise VerificationError(
        f"operator {name}: neither the interpreter nor TVM's legalization has a form of it; "
        "it must be rewritten before the module is interpreted"
    )


def _left_over(module: tvm.IRModule) -> bool:
    """Whether legalization left a call that is no call of a tensor function."""
    left: list[str] = []

    def visit(expr: Any) -> None:
        if isinstance(expr, relax.Call) and isinstance(expr.op, tvm.ir.Op) and expr.op.name not in _LOWERED:
            left.append(expr.op.name)

    relax.analysis.post_order_visit(module["main"], visit)
    return bool(left)
