"""Measures start-up and memory: a bundle in C and in Python, ONNX Runtime and OpenVINO, each in fresh processes.

    pip install --no-deps torchvision; pip install -e '.[peers]'
    python benchmarks/startup.py FOLDER --model resnet18

FOLDER gets the models, and keeps them for the next time. A process imports its engine, loads the model, runs it twice on
one thread, and tells how long each took and the peak of its memory (``ru_maxrss``). Rounds of all engines alternate; the
medians are shown. The files are in the page cache, since each was read by an earlier round. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

COLUMNS = ("import", "load", "first", "load and first", "second", "peak")


def prepare(name: str, folder: Path) -> dict[str, Path]:
    """Writes what is not there yet; returns the model of each engine."""
    import models

    from qcompiler.config import CompileConfig
    from qcompiler.driver.compile import compile_model
    from qcompiler.driver.data import read_samples
    from qcompiler.driver.peers import by_name
    from qcompiler.frontend import capture
    from qcompiler.runtime import read_manifest

    folder.mkdir(parents=True, exist_ok=True)
    archive, data = folder / f"{name}.pt2", folder / f"{name}.npz"
    if not (archive.is_file() and data.is_file()):
        models.write(name, folder)
    bundle = folder / f"{name}-bundle"
    if not bundle.is_dir():
        compile_model(str(archive), CompileConfig(), calibration=data, output=bundle)
    made = {"C": bundle, "Python": bundle}
    for engine, file in (("onnxruntime", "int8.onnx"), ("openvino", "model.xml")):
        place = folder / f"{name}-{engine}"
        if not (place / file).is_file():
            place.mkdir(exist_ok=True)
            samples = read_samples(data, read_manifest(bundle).inputs)
            by_name(engine).prepare(capture.resolve(str(archive)), samples, place)
        made[engine] = place / file
    return made


def build(bundle: Path, folder: Path) -> Path:
    """The C program, built by the system's compiler as the bundle's README says."""
    program = folder / "startup"
    source = Path(__file__).with_suffix(".c")
    subprocess.run(
        [
            "cc",
            "-O2",
            source,
            "-Iinclude",
            "-Llib",
            "-lqc_runtime",
            f"-Wl,-rpath,{bundle / 'lib'}",
            "-o",
            program,
        ],
        cwd=bundle,
        check=True,
    )
    return program


def work(engine: str, model: Path, threads: int) -> None:
    """In a fresh process: measures one engine and prints JSON."""
    import numpy as np

    start = time.perf_counter()  # NumPy is everybody's
    if engine == "Python":
        import qcompiler.runtime
        from qcompiler.runtime.library import import_ffi

        import_ffi()
        imported = time.perf_counter()
        loaded = qcompiler.runtime.load(model, threads)

        def run(inputs: list[np.ndarray]) -> object:
            return loaded.run(*inputs)
    else:
        importlib.import_module(engine)
        seconds = time.perf_counter() - start
        from qcompiler.driver.peers import by_name  # of this script, not of the engine

        imported = time.perf_counter()
        start = imported - seconds
        run = by_name(engine).session(model, threads)
    ready = time.perf_counter()
    shape = (1, 3, 224, 224)
    inputs = [np.ones(shape, np.float32)]
    before = time.perf_counter()
    run(inputs)
    first = time.perf_counter()
    run(inputs)
    second = time.perf_counter()
    print(
        json.dumps(
            {
                "import": 1e3 * (imported - start),
                "load": 1e3 * (ready - imported),
                "first": 1e3 * (first - before),
                "second": 1e3 * (second - first),
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            }
        )
    )


def measure(made: dict[str, Path], program: Path, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians by engine: milliseconds, and for ``peak`` KiB."""
    found: dict[str, list[dict[str, float]]] = {engine: [] for engine in made}
    for _ in range(rounds + 1):
        for engine, model in made.items():
            own = [program, model, str(threads)]
            other = [sys.executable, __file__, model, "--worker", engine, "--threads", str(threads)]
            command = own if engine == "C" else other
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            row = json.loads(result.stdout.splitlines()[-1])
            found[engine].append({**row, "load and first": row["load"] + row["first"]})
    # The first round brings the files into the page cache.
    return {
        engine: {column: statistics.median(row[column] for row in rows[1:]) for column in COLUMNS}
        for engine, rows in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--prepare", action="store_true", help="only write the models")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.folder, arguments.threads)
        return
    folder = arguments.folder.resolve()
    made = prepare(arguments.model, folder)
    if arguments.prepare:
        return
    rows = measure(made, build(made["C"], folder), arguments.threads, arguments.rounds)
    print(f"{'engine':14}" + "".join(f"{column:>16}" for column in COLUMNS))
    for engine, row in rows.items():
        times = "".join(f"{row[column]:13.1f} ms" for column in COLUMNS[:-1])
        print(f"{engine:14}{times}{row['peak'] / 1024:12.1f} MiB")


if __name__ == "__main__":
    main()
