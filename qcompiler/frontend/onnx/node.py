"""A node of an ONNX graph as its conversion sees it: operands, attributes, and the errors that name it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from qcompiler.errors import UnsupportedOperatorError
from qcompiler.frontend.onnx.weights import QuantizedConstant

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Runtime:
    """A value that depends on the inputs.

    Attributes:
        name: its name in the ONNX graph.
        tensor: a tensor without values, for its shape and dtype.
        shifted: it stands for int8 values and holds them as uint8, 128 higher.
    """

    name: str
    tensor: torch.Tensor
    shifted: bool = False


@dataclass(frozen=True, eq=False)
class Constant:
    """A value that does not depend on the inputs."""

    array: Array


Value = Runtime | Constant | QuantizedConstant

Operand = Runtime | torch.Tensor
"""What a call takes: a runtime value, or a constant that its module holds."""


@dataclass(frozen=True, eq=False)
class Call:
    """What a node computes.

    Attributes:
        function: takes a tensor an operand, and returns the node's results in their order.
        operands: in the function's order.
        shifted: the result stands for int8 and is held as uint8.
        outputs: names of the results, where they are not the node's own.
        takes_bias: the function takes one operand more, a bias of the extent of its second operand's first axis.
    """

    function: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]
    operands: Sequence[Operand]
    shifted: bool = False
    outputs: tuple[str, ...] | None = None
    takes_bias: bool = False


class Node:
    """An ONNX node with the values of its inputs.

    Attributes:
        op_type: the operator's name, with its domain where that is not ONNX's own.
        name: the node's name, or one made of its operator and position.
        opset: version of its operator set.
        values: its inputs; None for one that is left out.
        outputs: names of its results; empty for one that is left out.
    """

    def __init__(
        self, op_type: str, name: str, opset: int, attributes: Mapping[str, Any], values: Sequence[Value | None],
        outputs: Sequence[str],
    ) -> None:  # fmt: skip
        self.op_type = op_type
        self.name = name
        self.opset = opset
        self.values = values
        self.outputs = outputs
        self._attributes = attributes

    def refuse(self, reason: str) -> NoReturn:
        """Raises UnsupportedOperatorError with the operator, the node and ``reason``."""
        raise UnsupportedOperatorError(f"{self.op_type} at node {self.name!r}: {reason}")

    # Attributes

    def attribute(self, name: str, default: Any) -> Any:
        return self._attributes.get(name, default)

    def attr_int(self, name: str, default: int) -> int:
        return int(self._attributes.get(name, default))

    def attr_float(self, name: str, default: float) -> float:
        return float(self._attributes.get(name, default))

    def attr_text(self, name: str, default: str) -> str:
        value = self._attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)

    def attr_ints(self, name: str, default: Sequence[int] | None) -> list[int] | None:
        value = self._attributes.get(name, default)
        return None if value is None else [int(v) for v in value]

    # Inputs

    def has(self, position: int) -> bool:
        """Whether the input is given."""
        return position < len(self.values) and self.values[position] is not None

    def value(self, position: int) -> Value:
        value = self.values[position] if position < len(self.values) else None
        if value is None:
            self.refuse(f"its input {position} is missing")
        return value

    def shape(self, position: int = 0) -> tuple[int, ...]:
        value = self.value(position)
        return tuple(value.tensor.shape if isinstance(value, Runtime) else value.array.shape)

    def rank(self, position: int = 0) -> int:
        return len(self.shape(position))

    def axis(self, default: int, rank: int | None = None) -> int:
        """Attribute ``axis``, counted from the front."""
        of = self.rank() if rank is None else rank
        axis = self.attr_int("axis", default)
        if not -of <= axis < max(of, 1):
            self.refuse(f"its axis is {axis}, outside of the {of} dimensions of its input")
        return axis % of if of else 0

    def constant(self, position: int) -> Array | None:
        """The array of a constant input; None if the input is left out.

        Raises:
            UnsupportedOperatorError: it is computed at run time.
        """
        if not self.has(position):
            return None
        value = self.value(position)
        if isinstance(value, Runtime):
            self.refuse(
                f"its input {position} ({value.name!r}) is computed at run time; it must be a constant: "
                "simplify the model (onnxruntime.quantization.quant_pre_process), with fixed shapes"
            )
        return value.array

    def integers(self, position: int) -> list[int] | None:
        """A constant input as a list of integers; None if it is left out."""
        array = self.constant(position)
        return None if array is None else [int(v) for v in array.reshape(-1)]

    def number(self, position: int) -> float | None:
        """A constant input of one element as a number; None if it is left out."""
        array = self.constant(position)
        if array is None:
            return None
        if array.size != 1:
            self.refuse(f"its input {position} has shape {list(array.shape)}; it must be one number")
        return float(array.reshape(()))

    def operand(self, position: int) -> Operand:
        """The input as the operand of a call; quantized constants become activations or real numbers."""
        value = self.value(position)
        if isinstance(value, Runtime):
            return value
        return as_tensor(value.array)

    def operands(self) -> list[Operand]:
        """All inputs that are given."""
        return [self.operand(k) for k in range(len(self.values)) if self.has(k)]

    def is_constant(self, position: int) -> bool:
        return self.has(position) and not isinstance(self.value(position), Runtime)


def as_tensor(array: Array) -> torch.Tensor:
    """A tensor of its own memory."""
    return torch.from_numpy(np.array(array, order="C"))


_DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
    10: torch.float16, 11: torch.float64, 16: torch.bfloat16,
}  # fmt: skip
"""PyTorch's dtypes by the numbers of ``onnx.TensorProto.DataType``."""


def torch_dtype(number: int, where: str) -> torch.dtype:
    """PyTorch's dtype of an ONNX element type.

    Raises:
        UnsupportedOperatorError: it has none here.
    """
    if number not in _DTYPES:
        import onnx

        name = (
            onnx.TensorProto.DataType.Name(number) if number in onnx.TensorProto.DataType.values() else number
        )
        raise UnsupportedOperatorError(
            f"{where} has element type {name}; known: {', '.join(str(d).removeprefix('torch.') for d in _DTYPES.values())}"
        )
    return _DTYPES[number]
