"""Measures start-up and memory: a bundle in C and in Python, as a wheel, ONNX Runtime and OpenVINO, each in fresh processes.

    pip install --no-deps torchvision; pip install -e '.[peers]'
    python benchmarks/startup.py FOLDER --model resnet18

FOLDER gets the models, and keeps them for the next time. A process imports its engine, loads the model and runs it twice.
Rounds of all engines alternate; the medians are shown. The files are in the page cache, since each was read by an earlier
round. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import wheel_session
from job import Job

from qcompiler.driver.bench import bundle_artifact
from qcompiler.driver.bench_artifacts import Artifact, prepare
from qcompiler.driver.bench_process import worker
from qcompiler.driver.data import Array
from qcompiler.driver.export import export
from qcompiler.driver.peers import PeerOptions, by_name, own

COLUMNS = ("import", "load", "first", "load and first", "second", "peak")
"""Milliseconds, but for the last: MiB."""

C = "C"


def of_bundle(bundle: Path, folder: Path, threads: int) -> dict[str, Artifact]:
    """A bundle in Python and as a wheel, which is unpacked into ``folder``, by the engine's name."""
    python = bundle_artifact(bundle, [threads], PeerOptions())
    wheel = export(bundle, "wheel", folder, name=wheel_session.PACKAGE.replace("_", "-")).path
    unpacked = folder / "wheel"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    session = f"{Path(wheel_session.__file__)}:open_session"
    return {
        "Python": python,
        "Python, exported wheel": replace(python, models={threads: unpacked}, session=session),
    }


def build(bundle: Path, folder: Path) -> Path:
    """The C program, built by the system's compiler as the bundle's README says."""
    program = folder / "startup"
    options = [*("-Iinclude", "-Llib", "-lqc_runtime"), f"-Wl,-rpath,{bundle / 'lib'}"]
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-O2", source, *options, "-o", program], cwd=bundle, check=True)
    return program


def start(artifact: Artifact, threads: int, inputs: Path) -> dict[str, float]:
    """One process of an engine."""
    with worker(artifact, threads, inputs) as held:
        begun = held.start()
        second = held.measure()
        peak = held.peak_bytes()
    return {
        "import": 1e3 * begun.import_seconds,
        "load": 1e3 * begun.session_seconds,
        "first": 1e3 * begun.first_seconds,
        "second": 1e3 * second,
        "peak": float("nan") if peak is None else peak / 2**20,
    }


def start_c(program: Path, bundle: Path, threads: int) -> dict[str, float]:
    """One process of the C program."""
    ended = subprocess.run([program, bundle, str(threads)], stdout=subprocess.PIPE, text=True, check=True)
    row: dict[str, float] = json.loads(ended.stdout)
    return row | {"peak": row["peak"] / 1024}


def measure(
    program: Path, engines: Mapping[str, Artifact], inputs: Sequence[Array], threads: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Medians of :data:`COLUMNS` by engine; ``program`` is that of :func:`build`, for the bundle of ``Python``."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (C, *engines)}
    with tempfile.TemporaryDirectory(prefix="qcompiler-startup-") as scratch:
        stored = Path(scratch) / "inputs.npz"
        np.savez(stored, *inputs)
        for _ in range(rounds + 1):
            found[C].append(start_c(program, engines["Python"].models[threads], threads))
            for name, artifact in engines.items():
                found[name].append(start(artifact, threads, stored))
    # The first round brings the files into the page cache.
    return {
        name: {
            column: statistics.median(
                row["load"] + row["first"] if column == "load and first" else row[column] for row in rows[1:]
            )
            for column in COLUMNS
        }
        for name, rows in found.items()
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
    arguments = parser.parse_args()
    threads = arguments.threads
    folder = arguments.folder.resolve() / arguments.model
    job = Job(arguments.model, 1, folder, (threads,), PeerOptions())
    job.write()
    made = {
        peer.name: prepare(peer, job.source(), folder / peer.name)
        for peer in (own.PEER, by_name("onnxruntime"), by_name("openvino"))
    }
    absent = [f"{name} is absent: {artifact.absent}" for name, artifact in made.items() if artifact.absent]
    if absent:
        raise SystemExit("\n".join(absent))
    bundle = made.pop(own.OWN).models[threads]
    engines = of_bundle(bundle, folder, threads)
    engines |= {f"{name} {artifact.version}": artifact for name, artifact in made.items()}
    program = build(bundle, folder)
    if arguments.prepare:
        return
    rows = measure(program, engines, [job.data()[:1]], threads, arguments.rounds)
    print(f"{'engine':24}" + "".join(f"{column:>16}" for column in COLUMNS))
    for name, row in rows.items():
        times = "".join(f"{row[column]:13.1f} ms" for column in COLUMNS[:-1])
        print(f"{name:24}{times}{row['peak']:12.1f} MiB")


if __name__ == "__main__":
    main()
