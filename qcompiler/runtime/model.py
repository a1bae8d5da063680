"""A loaded model: runs, times and profiles its library."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from qcompiler.errors import BundleError, ConfigError
from qcompiler.runtime.gpu import Placement
from qcompiler.runtime.inputs import Array, describe, order_inputs, to_array
from qcompiler.runtime.library import ENTRY, import_ffi, new_machine
from qcompiler.runtime.manifest import Manifest, TensorSpec
from qcompiler.runtime.threads import configure

_MACHINE_NAMESPACE = "vm."
"""Namespace of the virtual machine's own functions (allocation, checks, tuples), which are no kernels."""


class Model:
    """A model ready to run; :func:`qcompiler.runtime.load` makes it.

    Several Python threads may call one model at the same time. TVM's virtual machine runs one call at a time,
    so each call takes a machine of its own from a pool that grows with the number of simultaneous calls; the
    library and its constants are shared. Each calling thread has its own ``threads`` workers.
    """

    def __init__(
        self, manifest: Manifest, module: Any, threads: int, constants: Sequence[Array] = ()
    ) -> None:
        """
        Args:
            manifest: of the bundle.
            module: the loaded library.
            threads: of one run.
            constants: the arguments that follow the inputs, dense and aligned.
        """
        self._manifest = manifest
        self._module = module
        self._threads = threads
        self._placement = Placement(bool(manifest.architectures))
        self._constants = [self._placement.to_model(import_ffi().from_dlpack(array)) for array in constants]
        self._idle: list[Callable[..., Any]] = []
        self._lock = threading.Lock()
        # Positions of outputs that lie in memory which is not theirs alone; None before the first run.
        self._borrowed_outputs: frozenset[int] | None = None

    @property
    def manifest(self) -> Manifest:
        return self._manifest

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self._manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self._manifest.outputs

    @property
    def threads(self) -> int:
        """Threads of one run, the calling one included."""
        return self._threads

    def __repr__(self) -> str:
        tensors = [", ".join(map(describe, specs)) for specs in (self.inputs, self.outputs)]
        return f"Model({tensors[0]} -> {tensors[1]}; {self._manifest.target_name}, threads={self._threads})"

    def __call__(self, *inputs: Any) -> tuple[Array, ...]:
        """The same as :meth:`run`."""
        return self.run(*inputs)

    def run(self, *inputs: Any) -> tuple[Array, ...]:
        """Runs the model once.

        Args:
            inputs: one value an input, or one mapping from names to values. A value is a NumPy array, a torch
                tensor, or another object with ``__dlpack__`` in the CPU's memory, of exactly the shape and
                dtype in :attr:`inputs`. It is read in place where it is dense, writeable and at a multiple of
                64 bytes, as torch's tensors are; else it is copied.

        Returns:
            The outputs in the order of :attr:`outputs`. They are the caller's to keep and to change, and pass
            on to other libraries by DLPack.

        Raises:
            InputError: an input's name, shape, dtype or place is wrong, or their number.
            ConfigError: the calling thread's workers cannot be set up; see :mod:`qcompiler.runtime.threads`.
        """
        tensors = self._tensors(inputs)
        configure(self._threads)
        with self._machine() as machine:
            outputs = self._arrays_of(machine(*tensors))
        if self._borrowed_outputs is None:
            self._borrowed_outputs = self._inspect(outputs, tensors)
        return tuple(o.copy() if i in self._borrowed_outputs else o for i, o in enumerate(outputs))

    def time(self, *inputs: Any, number: int = 10, repeat: int = 3) -> list[float]:
        """Measures runs without the conversion of inputs and outputs.

        Args:
            inputs: as of :meth:`run`.
            number: runs of one measurement.
            repeat: measurements; one more run comes before them to warm up.

        Returns:
            For each measurement the mean seconds of one run.

        Raises:
            InputError: as :meth:`run`.
            ConfigError: as :meth:`run`, or ``number`` or ``repeat`` is below 1.
        """
        _check_counts(number=number, repeat=repeat)
        tensors = self._tensors(inputs)
        configure(self._threads)
        seconds = []
        with self._machine() as machine:
            machine(*tensors)
            self._placement.wait()
            for _ in range(repeat):
                start = time.perf_counter()
                for _ in range(number):
                    machine(*tensors)
                self._placement.wait()
                seconds.append((time.perf_counter() - start) / number)
        return seconds

    def profile(self, *inputs: Any, repeat: int = 10) -> list[tuple[str, float]]:
        """Measures every kernel call of a run.

        The clock is read by a callback around each call, which adds about a microsecond to each.

        Args:
            inputs: as of :meth:`run`.
            repeat: runs to average over; one more comes before them to warm up.

        Returns:
            The kernel calls in the order they ran, each with the kernel's name in the library and its mean
            seconds. The virtual machine's own work (allocating memory, checking shapes) is left out.

        Raises:
            InputError: as :meth:`run`.
            ConfigError: as :meth:`run`, or ``repeat`` is below 1.
        """
        _check_counts(repeat=repeat)
        tensors = self._tensors(inputs)
        configure(self._threads)
        calls: list[tuple[str, float]] = []
        start = 0.0

        def watch(_function: Any, name: str, before: bool, *_arguments: Any) -> int:
            nonlocal start
            self._placement.wait()
            now = time.perf_counter()
            if not before and not name.startswith(_MACHINE_NAMESPACE):
                calls.append((str(name), now - start))
            start = time.perf_counter()
            return 0  # "run the call", in TVM's convention

        # A machine keeps its instrument for good, so profiling has one of its own.
        machine = new_machine(self._module, self._placement.devices)
        machine["set_instrument"](import_ffi().convert(watch))
        function = machine[ENTRY]
        function(*tensors)
        runs = []
        for _ in range(repeat):
            calls.clear()
            function(*tensors)
            runs.append(list(calls))
        return [
            (call[0][0], sum(seconds for _, seconds in call) / repeat) for call in zip(*runs, strict=True)
        ]

    def _tensors(self, inputs: Sequence[Any]) -> list[Any]:
        """The arguments as TVM's tensors, which keep the memory that they show alive."""
        from_dlpack = import_ffi().from_dlpack
        values = order_inputs(self.inputs, inputs)
        tensors = [
            self._placement.to_model(from_dlpack(to_array(spec, value)))
            for spec, value in zip(self.inputs, values, strict=True)
        ]
        return tensors + self._constants

    @contextmanager
    def _machine(self) -> Iterator[Callable[..., Any]]:
        """Lends a machine's entry function; after an error the machine is not used again."""
        with self._lock:
            machine = (
                self._idle.pop() if self._idle else new_machine(self._module, self._placement.devices)[ENTRY]
            )
        yield machine
        with self._lock:
            self._idle.append(machine)

    def _arrays_of(self, result: Any) -> list[Array]:
        """The arrays of a result, which is a tensor or a nested sequence of them."""
        if hasattr(result, "__dlpack__"):
            return [np.from_dlpack(self._placement.to_caller(result))]
        return [array for part in result for array in self._arrays_of(part)]

    def _inspect(self, outputs: list[Array], tensors: list[Any]) -> frozenset[int]:
        """Checks the outputs of a run against the manifest, and finds those that share their memory.

        Such an output is an argument passed through, an input or a constant, or shares its memory with an earlier
        output. To hand it out as it is would let the caller change the model, the input, or another output.
        """
        found = [f"{output.dtype}{list(output.shape)}" for output in outputs]
        expected = [f"{spec.dtype}{list(spec.shape)}" for spec in self.outputs]
        if found != expected:
            raise BundleError(
                f"library returns {', '.join(found)}, and the manifest says {', '.join(expected)}; "
                "compile the model again"
            )
        if self._placement.gpu:  # they were copied out of it
            return frozenset()
        arguments = [np.from_dlpack(tensor) for tensor in tensors]
        return frozenset(
            i
            for i, output in enumerate(outputs)
            if any(np.may_share_memory(output, other) for other in (*arguments, *outputs[:i]))
        )


def _check_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"{name} is {count}; it must be at least 1")
