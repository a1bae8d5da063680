"""What a kernel is made from: one call of the module, with its arguments resolved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from tvm import relax

from qcompiler.errors import VerificationError

Array: TypeAlias = npt.NDArray[Any]
Run: TypeAlias = Callable[[Sequence[Array]], tuple[Array, ...]]


@dataclass(frozen=True)
class Slot:
    """A tensor that is computed by a step, or an input.

    Attributes:
        index: its place in the memory of a run.
        shape: static shape.
        dtype: NumPy's name of the dtype.
    """

    index: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class Constant:
    """A tensor that the module carries."""

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> str:
        return self.array.dtype.name


@dataclass(frozen=True, eq=False)
class Static:
    """An argument that is no tensor: a shape, a number, a string, the name of a function."""

    expr: Any


@dataclass(frozen=True, eq=False)
class Group:
    """A tuple."""

    fields: tuple[Operand, ...]


Operand: TypeAlias = Slot | Constant | Static | Group
Leaf: TypeAlias = Slot | Constant


def leaves(operand: Operand) -> Iterator[Leaf]:
    """The tensors of ``operand``, in order."""
    if isinstance(operand, Group):
        for field in operand.fields:
            yield from leaves(field)
    elif not isinstance(operand, Static):
        yield operand


def tensor_types(ty: Any, where: str) -> list[tuple[tuple[int, ...], str]]:
    """Shapes and dtypes of the tensors of Relax type ``ty``, tuples flattened.

    Raises:
        VerificationError: the type is no tensor or its shape is not static; the message names ``where``.
    """
    if isinstance(ty, relax.TupleType):
        return [entry for field in ty.fields for entry in tensor_types(field, where)]
    if not isinstance(ty, relax.TensorType) or ty.shape is None:
        raise VerificationError(f"{where} has type {ty}; the interpreter needs tensors of known shape")
    try:
        return [(tuple(int(d) for d in ty.shape), str(ty.dtype))]
    except TypeError as e:
        raise VerificationError(f"{where} has shape {ty.shape}; the interpreter needs a static shape") from e


@dataclass(frozen=True, eq=False)
class Site:
    """One call.

    Attributes:
        name: name of the operator.
        variable: name of the variable that the call is bound to.
        call: the call itself, for its attributes and types.
        arguments: its arguments, variables resolved.
    """

    name: str
    variable: str
    call: Any
    arguments: tuple[Operand, ...]

    @property
    def where(self) -> str:
        """Operator and variable, as messages name them."""
        return f"{self.name} ({self.variable})"

    @property
    def tensors(self) -> list[Leaf]:
        """The tensors among the arguments, tuples flattened."""
        return [leaf for argument in self.arguments for leaf in leaves(argument)]

    @property
    def outputs(self) -> list[tuple[tuple[int, ...], str]]:
        """Shapes and dtypes of the results, tuples flattened."""
        return tensor_types(self.call.ty, self.where)

    def integer(self, attribute: str) -> int:
        return int(self.call.attrs[attribute])

    def integers(self, attribute: str) -> tuple[int, ...]:
        return tuple(int(v) for v in self.call.attrs[attribute])

    def text(self, attribute: str) -> str:
        return str(self.call.attrs[attribute])

    def float32(self, attribute: str) -> np.float32:
        """The attribute rounded to float32, which keeps NumPy from computing in float64."""
        return np.float32(self.call.attrs[attribute])

    def expect(self, *dtypes: str) -> None:
        """Checks dtypes of the tensor arguments; there may be fewer arguments than ``dtypes``.

        Raises:
            VerificationError: an argument has another dtype, or there are too many.
        """
        given = [leaf.dtype for leaf in self.tensors]
        if len(given) > len(dtypes) or given != list(dtypes[: len(given)]):
            raise VerificationError(
                f"{self.where} has arguments ({', '.join(given)}); the contract in operators.py says "
                f"({', '.join(dtypes)})"
            )


@dataclass(frozen=True, eq=False)
class Kernel:
    """How a call is computed.

    Attributes:
        run: from the arrays of the tensor arguments to those of the results; must not change its arguments.
        exact: every machine computes the same bits as ``run``.
    """

    run: Run
    exact: bool = True
