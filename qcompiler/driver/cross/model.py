"""A bundle that is ready to run here: natively, or emulated where it is for another architecture."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

from qcompiler import runtime
from qcompiler.driver.cross import emulator
from qcompiler.driver.machines import MACHINES
from qcompiler.runtime import Manifest, TensorSpec
from qcompiler.runtime.inputs import Array, order_inputs, to_array
from qcompiler.runtime.library import map_constants
from qcompiler.runtime.manifest import LIBRARY_NAME
from qcompiler.runtime.threads import check_threads

_ARMV8_2 = frozenset({"fp", "asimd", "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc", "asimddp"})
_CPUS = (("cortex-a72", frozenset({"fp", "asimd"})), ("neoverse-n1", _ARMV8_2))
"""QEMU's processors with their features, the weakest first; the one after them has all."""


def emulated_cpu(manifest: Manifest) -> str:
    """QEMU's name of the weakest processor that has the features of a bundle: it traps on any other instruction."""
    needed = frozenset(manifest.required_features)
    return next((name for name, features in _CPUS if needed <= features), "max")


class EmulatedModel:
    """A model for another architecture; every call runs it in a new emulated process."""

    def __init__(self, bundle: Path, manifest: Manifest, threads: int) -> None:
        self.manifest = manifest
        self.threads = threads
        self.cpu = emulated_cpu(manifest)
        self._library = bundle / LIBRARY_NAME
        self._constants = map_constants(bundle, manifest)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        return self.manifest.outputs

    def run_many(self, samples: Sequence[Sequence[Array]]) -> list[tuple[Array, ...]]:
        """The outputs of a run on each of ``samples``.

        Raises:
            InputError: an input's shape or dtype is wrong.
            BuildError: the emulator is missing, or the process failed.
        """
        checked = [
            [
                to_array(spec, value)
                for spec, value in zip(self.inputs, order_inputs(self.inputs, sample), strict=True)
            ]
            for sample in samples
        ]
        family = str(self.manifest.target["family"])
        results = emulator.run(
            self._library, checked, self._constants, family=family, cpu=self.cpu, threads=self.threads
        )
        return [tuple(arrays) for arrays in results]


def open_bundle(
    bundle: Path, threads: int | None, *, require_signature: Path | None = None
) -> runtime.Model | EmulatedModel:
    """A bundle to run: loaded, or emulated where it is for another architecture.

    Args:
        bundle: the bundle's folder.
        threads: threads of one run; all physical cores if not given.
        require_signature: a public key; the bundle must be signed by its owner.

    Raises:
        BundleError: it is damaged.
        CpuError: it is for this architecture, and this processor lacks features.
        BuildError: it is for another one, and the emulator is missing.
    """
    manifest = runtime.read_manifest(bundle)
    family = str(manifest.target["family"])
    machine = MACHINES.get(family)
    if machine is None or machine.name == platform.machine():
        return runtime.load(bundle, threads, require_signature=require_signature)
    emulator.find(family)
    manifest = runtime.verify(bundle, require_signature=require_signature)
    return EmulatedModel(bundle, manifest, check_threads(threads))


def run_many(
    model: runtime.Model | EmulatedModel, samples: Sequence[Sequence[Array]]
) -> list[tuple[Array, ...]]:
    """The outputs of a run on each of ``samples``."""
    if isinstance(model, EmulatedModel):
        return model.run_many(samples)
    return [model.run(*inputs) for inputs in samples]
