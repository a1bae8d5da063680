"""A process that holds one engine at one number of threads, and times it when told to.

A script that stands alone, as the files in ``peers/sessions`` do and for the same reasons.

Arguments: ``file:function`` that opens the session, model, threads, ``.npz`` of the inputs, file for the outputs. It
writes a line of JSON when the first output is there: the seconds that importing the engine, opening the model and the
first run took, and the resident bytes before and after the import. Then it answers each line that it reads. A number is that of runs, and the
answer the mean seconds of one; ``memory`` asks for the largest number of resident bytes so far. ``{"error": …}`` says
what went wrong, and ends it.
"""

from __future__ import annotations

import os
import sys

# Started by its path, this file has its folder on the module path, where names (profile, data) hide other modules.
if __name__ == "__main__":
    sys.path[:] = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]

import importlib.util
import json
import time
from pathlib import Path
from typing import Any, TextIO

import numpy as np


def main() -> None:
    session, model, threads, inputs, outputs = sys.argv[1:]
    # Engines print on the standard output; the answers go through a copy of it that only this file knows.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        with np.load(inputs) as archive:
            arrays = [archive[name] for name in archive.files]
        file, _, function = session.rpartition(":")
        engine = load(Path(file))
        baseline = resident("VmRSS")
        start = time.perf_counter()
        engine.import_engine()
        imported = time.perf_counter()
        imported_bytes = resident("VmRSS")
        opening = time.perf_counter()
        run = getattr(engine, function)(model, int(threads))
        opened = time.perf_counter()
        found = run(arrays)
        first = time.perf_counter()
        _answer(
            answers,
            import_seconds=imported - start,
            session_seconds=opened - opening,
            first_seconds=first - opened,
            baseline_bytes=baseline,
            imported_bytes=imported_bytes,
        )
        del found
        for line in sys.stdin:
            if line.strip() == "memory":
                _answer(answers, peak_bytes=resident("VmHWM"))
            elif line.strip() == "outputs":
                np.savez(outputs, *(np.asarray(array) for array in run(arrays)))
                _answer(answers)
            else:
                _answer(answers, seconds=measure(run, arrays, int(line)))
    except Exception as error:  # whatever a foreign engine raises goes to the parent, which reports it
        _answer(answers, error=f"{type(error).__name__}: {error}")
        sys.exit(1)


def measure(run: Any, arrays: list[Any], runs: int) -> float:
    """Mean seconds of one run."""
    start = time.perf_counter()
    for _ in range(runs):
        run(arrays)
    return (time.perf_counter() - start) / runs


def load(file: Path) -> Any:
    """A file of ``peers/sessions`` as a module, without the packages around it."""
    spec = importlib.util.spec_from_file_location(f"session_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def resident(field: str) -> int | None:
    """``VmRSS``, the resident bytes of this process, or ``VmHWM``, the most there ever were; None where Linux's
    ``/proc`` is missing."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    for line in status.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    return None


def _answer(stream: TextIO, **content: object) -> None:
    stream.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
