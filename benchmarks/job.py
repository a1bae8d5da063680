"""A network at a batch, with the files that the benchmarks make of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import models
import numpy as np
import torch

from qcompiler.driver.bench_artifacts import Source
from qcompiler.driver.data import Array, Samples
from qcompiler.driver.float_model import float_model
from qcompiler.driver.peers import PeerOptions


@dataclass(frozen=True)
class Job:
    """A network at a batch, and where its files are."""

    network: str
    batch: int
    folder: Path
    threads: tuple[int, ...]
    options: PeerOptions

    @property
    def archive(self) -> Path:
        return self.folder / f"{self.network}.pt2"

    def data(self) -> Array:
        with np.load(self.folder / f"{self.network}.npz") as arrays:
            return np.asarray(arrays["x"])

    def expected(self) -> list[Array]:
        """The float network's outputs."""
        with np.load(self.folder / "expected.npz") as arrays:
            return [arrays[name] for name in arrays.files]

    def write(self) -> None:
        """Makes the network, the images, and the float outputs of the first run."""
        if not (self.folder / "expected.npz").exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            models.write(self.network, self.folder, self.batch)
            outputs = float_model(torch.export.load(self.archive))(self.data()[: self.batch])
            np.savez(self.folder / "expected.npz", *outputs)

    def source(self) -> Source:
        data = self.data()
        return Source(self.archive, Samples((data,), None, self.batch, len(data)), self.threads, self.options)
