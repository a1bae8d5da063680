"""A process that holds one engine at one number of threads, and times it when told to.

Arguments: engine, model, threads, ``.npz`` of the inputs. It writes a line of JSON, ``{"seconds": …}`` or
``{"error": …}``, when the model is loaded, and one for each line that it reads, which is a number of runs:
the mean seconds of one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np

from qcompiler.driver.peers import Session, by_name

OWN = "qcompiler"
"""Name of the engine that runs bundles."""


def main() -> None:
    engine, model, threads, inputs = sys.argv[1:]
    # Engines print on the standard output; the answers go through a copy of it that only this file knows.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    try:
        start = time.perf_counter()
        session = _session(engine, Path(model), int(threads))
        with np.load(inputs) as archive:
            arrays = [archive[name] for name in archive.files]
        session(arrays)
        _answer(answers, seconds=time.perf_counter() - start)
        for line in sys.stdin:
            start = time.perf_counter()
            for _ in range(int(line)):
                session(arrays)
            _answer(answers, seconds=(time.perf_counter() - start) / int(line))
    except Exception as error:  # whatever a foreign engine raises goes to the parent, which reports it
        _answer(answers, error=f"{type(error).__name__}: {error}")
        sys.exit(1)


def _session(engine: str, model: Path, threads: int) -> Session:
    if engine != OWN:
        return by_name(engine).session(model, threads)
    from qcompiler import runtime

    loaded = runtime.load(model, threads)
    return lambda inputs: loaded.run(*inputs)


def _answer(stream: TextIO, **content: object) -> None:
    stream.write(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
