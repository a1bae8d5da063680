"""Layers of a run against the chip: multiply-accumulates a second over multiply-accumulates a byte."""

from __future__ import annotations

import math
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from qcompiler.driver.profile import profile
from qcompiler.passes.graph import bindings, dims, dtype, op_name
from qcompiler.reference import storage
from qcompiler.runtime import read_manifest

WEIGHTED = ("qc.conv2d", "qc.dense")

COPY_BYTES = 256 << 20
"""More than any cache holds."""


def layers(bundle: Path, threads: int, repeat: int = 50) -> dict[str, Any]:
    """Measures a bundle's layers that multiply.

    Returns:
        ``peak`` (MAC/s of all threads) and where it comes from, ``bandwidth`` (bytes/s of main memory), and ``layers``:
        ``name``, ``operator``, ``macs``, ``seconds``, and ``bytes``, the least that it has to move: its inputs, constants
        and output, once each.
    """
    measured = profile(bundle, threads=threads, repeat=repeat)
    needed = _bytes(bundle)
    rows = [row for row in measured.rows if row.macs]
    unknown = [row.name for row in rows if row.name not in needed]
    if unknown:
        raise ValueError(f"{bundle}: the reference has no layer {unknown[0]!r}")
    return {
        "threads": threads,
        "peak": measured.peak,
        "peak_source": measured.peak_source,
        "bandwidth": bandwidth(threads),
        "layers": [
            {
                "name": row.name,
                "operator": row.operator,
                "macs": row.macs,
                "seconds": row.seconds,
                "bytes": needed[row.name],
            }
            for row in rows
        ],
    }


def _bytes(bundle: Path) -> dict[str, int]:
    """Bytes of inputs, constants and output, by the name of the layer.

    Layers of the bundle and operators of its reference that have weights are in the same order.
    """
    module = storage.load(bundle / "reference.json.gz")
    found = [binding for binding in bindings(module) if op_name(binding.value) in WEIGHTED]
    named = [layer.name for layer in read_manifest(bundle).layers if layer.macs]
    return {
        name: _size(binding.var) + sum(_size(argument) for argument in binding.value.args)
        for name, binding in zip(named, found, strict=True)
    }


def _size(value: Any) -> int:
    return math.prod(dims(value)) * np.dtype(dtype(value)).itemsize


def bandwidth(threads: int) -> float:
    """Bytes a second that ``threads`` threads read and write together when they copy."""
    share = COPY_BYTES // threads
    buffers = [(np.ones(share, np.uint8), np.empty(share, np.uint8)) for _ in range(threads)]
    best = math.inf
    for _ in range(8):
        # NumPy copies without holding the interpreter's lock.
        workers = [threading.Thread(target=np.copyto, args=(b, a)) for a, b in buffers]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - start)
    return 2 * share * threads / best
