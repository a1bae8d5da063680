"""Writing kernels of threads with TVM's IR builder: launch, views of memory, calls of the functions in ``device.cuh``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import prod
from typing import Any

from tvm import tirx
from tvm.ir import Expr
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from qcompiler.targets.workload import mark_scheduled

WARP = 32
"""Threads of a warp."""

MAX_GRID = 65535
"""Most blocks along the second and the third axis of a grid."""


class Kernel:
    """A kernel under construction: arguments first, then :meth:`launch`, once or in turn, with its statements."""

    def __init__(self) -> None:
        self._builder = IRBuilder()
        self._frames = ExitStack()

    def __enter__(self) -> Kernel:
        self._frames.enter_context(self._builder)
        self._frames.enter_context(T.prim_func())
        T.func_attr({"tirx.noalias": True})
        return self

    def __exit__(self, *exception: Any) -> None:
        self._frames.__exit__(*exception)

    def function(self) -> tirx.PrimFunc:
        """The finished kernel."""
        return mark_scheduled(self._builder.get())

    def argument(self, name: str, shape: Sequence[int], dtype: str) -> tirx.Buffer:
        return T.arg(name, T.buffer(tuple(shape), dtype))

    @contextmanager
    def launch(self, grid: Sequence[int], threads: int) -> Iterator[tuple[list[Expr], Expr]]:
        """Starts threads: what is within is what each of them does.

        Yields:
            The block's place in the grid, which has as many axes as ``grid``, and the thread's in the block.
        """
        assert all(extent <= MAX_GRID for extent in grid[1:]), grid
        with ExitStack() as frames:
            block = [
                frames.enter_context(T.launch_thread(f"blockIdx.{axis}", extent))
                for axis, extent in zip("xyz", grid, strict=False)
            ]
            yield block, frames.enter_context(T.launch_thread("threadIdx.x", threads))


def view(buffer: tirx.Buffer, dtype: str) -> tirx.Buffer:
    """All of an argument as one row of ``dtype``, as far as it fills whole elements of it."""
    bytes_of = {"uint8": 1, "int8": 1, "int32": 4, "float32": 4}
    size = prod(int(d) for d in buffer.shape) * bytes_of[str(buffer.dtype)] // bytes_of[dtype]
    return T.decl_buffer((size,), dtype, data=buffer.data)


def shared(words: int) -> tirx.Buffer:
    """Memory of the block, in words of 32 bits, at a multiple of 16 bytes."""
    return T.alloc_buffer((words,), "int32", scope="shared", align=16)


def registers(count: int, dtype: str = "int32") -> tirx.Buffer:
    """Memory of the thread; indices must be constants after unrolling, or it is no register."""
    return T.alloc_buffer((count,), dtype, scope="local")


def bind(value: Expr | int) -> Expr:
    """``value``, computed once."""
    return T.Bind(value) if isinstance(value, Expr) else value


def repeated(byte: int) -> Expr:
    """A word of four equal bytes."""
    return _word(byte * 0x01010101)


def placed(condition: Expr | bool, value: Expr, otherwise: int, position: int) -> Expr:
    """A byte in its position of a word, ``otherwise`` where the condition does not hold; the other bytes are 0.

    The constant is shifted here: TVM, where it finds that a condition never holds, refuses to shift it out of int32.
    """
    word = value.astype("int32") << (8 * position) if position else value.astype("int32")
    return (
        word if condition is True else tirx.if_then_else(condition, word, _word(otherwise << (8 * position)))
    )


def _word(bits: int) -> Expr:
    """32 bits as an int32."""
    return tirx.const(bits - (1 << 32) if bits >> 31 else bits, "int32")


def store(buffer: tirx.Buffer, index: Expr | int, value: Expr | int) -> None:
    T.buffer_store(buffer, value, [index])


def run(name: str, *arguments: Expr) -> None:
    """Calls a function of ``device.cuh`` that returns nothing."""
    T.evaluate(T.call_extern("void", name, *arguments))


def synchronize() -> None:
    """A barrier of all threads of the block."""
    T.evaluate(T.tvm_storage_sync("shared"))


@contextmanager
def when(condition: Expr | bool) -> Iterator[None]:
    """A conditional block; none where the condition is known to hold."""
    if condition is True:
        yield
        return
    with T.If(condition), T.Then():
        yield


@contextmanager
def otherwise_pair(condition: Expr) -> Iterator[tuple[Any, Any]]:
    """Both branches of a condition: two contexts, for where it holds and for where it does not."""
    with T.If(condition):
        yield T.Then(), T.Else()


def every(conditions: Sequence[Expr | bool]) -> Expr | bool:
    """Whether all conditions hold; True where each is known to."""
    open_ones = [c for c in conditions if c is not True]
    return tirx.all(*open_ones) if open_ones else True


def read(buffer: tirx.Buffer, offset: Expr | int, count: int) -> Expr:
    """Address of ``count`` elements to read."""
    return buffer.access_ptr("r", offset=offset, extent=count)


def update(buffer: tirx.Buffer, offset: Expr | int, count: int) -> Expr:
    """Address of ``count`` elements to read and write."""
    return buffer.access_ptr("rw", offset=offset, extent=count)


def address(buffer: tirx.Buffer, offset: Expr | int, count: int) -> Expr:
    """Address of ``count`` elements of :func:`shared` memory, for reading or writing.

    TVM puts barriers between the accesses it knows of, and takes all stages of copies that run ahead for one. Of these
    accesses it is told nothing: the barriers are the kernel's own.
    """
    return buffer.access_ptr(0, offset=offset, extent=count)
