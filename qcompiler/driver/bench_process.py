"""The measuring side's end of a ``bench_worker`` process."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from qcompiler.driver.bench_artifacts import Artifact
from qcompiler.driver.data import Array
from qcompiler.errors import BuildError

WORKER = Path(__file__).with_name("bench_worker.py")

ROUND_SECONDS = 0.2
"""Length of one measurement: long against the scheduler's slices, and short, so that the engines' turns come
soon one after the other."""


@dataclass(frozen=True)
class Start:
    """What the start of one process took.

    Attributes:
        import_seconds: importing the engine's package.
        session_seconds: from the imported engine to a loaded model.
        first_seconds: the first run.
        baseline_bytes: resident bytes of Python, NumPy and the inputs, before; None where they are not known.
        imported_bytes: the same with the engine's package.
    """

    import_seconds: float
    session_seconds: float
    first_seconds: float
    baseline_bytes: int | None
    imported_bytes: int | None

    @property
    def seconds(self) -> float:
        """From just before the import to the first output."""
        return self.import_seconds + self.session_seconds + self.first_seconds


class Worker:
    """A process that holds one engine; made by :func:`worker`."""

    def __init__(self, name: str, process: subprocess.Popen[str], errors: IO[str], outputs: Path) -> None:
        self._name = name
        self._process = process
        self._errors = errors
        self._outputs = outputs
        self._runs = 1

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> Start:
        """Waits for the first output.

        Raises:
            BuildError: as all methods: the engine failed, or its process ended.
        """
        return Start(**self._answer())

    def warm_up(self) -> None:
        """Finds how many runs fill a round; the first ones are slow: caches, pages, code compiled at run time."""
        for _ in range(3):
            self._runs = max(1, math.ceil(ROUND_SECONDS / self.measure()))

    def measure(self) -> float:
        """Mean seconds of one run in a round."""
        return float(self._ask(str(self._runs))["seconds"])

    def peak_bytes(self) -> int | None:
        """The most bytes that were resident at any time."""
        found = self._ask("memory")["peak_bytes"]
        return None if found is None else int(found)

    def outputs(self) -> list[Array]:
        """The outputs of a run."""
        self._ask("outputs")
        with np.load(self._outputs) as archive:
            return [archive[name] for name in archive.files]

    def _ask(self, question: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{question}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; its answer, or that there is none, says why
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        answer: dict[str, Any] = json.loads(line) if line else {"error": self._last_words()}
        if "error" in answer:
            raise BuildError(f"{self._name} failed: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().strip().splitlines()
        return f"its process ended with status {status}" + (f": {lines[-1]}" if lines else "")


@contextmanager
def worker(artifact: Artifact, threads: int, inputs: Path) -> Iterator[Worker]:
    """Starts a process with the engine's model for ``threads``; it has ended when the block has."""
    # Engines that parallelize by OpenMP read their number of threads here.
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if artifact.interpreter == sys.executable:
        # The process is to find what this one finds, installed or not.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    with (
        tempfile.TemporaryDirectory(prefix="qcompiler-bench-") as folder,
        tempfile.TemporaryFile("w+", errors="replace") as errors,
    ):
        outputs = Path(folder) / "outputs.npz"
        model = artifact.models[threads]
        process = subprocess.Popen(
            [
                artifact.interpreter,
                str(WORKER),
                artifact.session,
                str(model),
                str(threads),
                str(inputs),
                str(outputs),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=environment,
        )
        try:
            yield Worker(f"{artifact.engine} with {threads} threads", process, errors, outputs)
        finally:
            process.kill()
            process.communicate()
