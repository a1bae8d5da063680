"""What engines make of a model, each in a process of its own, and kept from one run to the next."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from qcompiler.driver.data import Samples
from qcompiler.driver.peers.base import SESSIONS, Made, Peer, PeerOptions, Request, Stages

RECORD = "artifact.json"
KEY = "key"
LOG = "prepare.log"


@dataclass(frozen=True)
class Artifact:
    """An engine's form of a model, or why there is none.

    Attributes:
        engine: the engine's name.
        version: its version; empty if it is absent.
        dtype: what it computes in.
        models: for each number of threads what its session opens.
        stages: seconds of the steps that made it; empty where it was not made here.
        size: bytes to ship for the model, the engine itself aside; None if there is none.
        settings: how the engine was set up, in words.
        interpreter: the Python that its sessions run in.
        session: path of the file that opens it, and the function in it, as ``path:function``.
        absent: why there is none, or None.
    """

    engine: str
    version: str
    dtype: str
    models: Mapping[int, Path] = field(default_factory=dict)
    stages: Mapping[str, float] = field(default_factory=dict)
    size: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    interpreter: str = sys.executable
    session: str = ""
    absent: str | None = None

    @property
    def seconds(self) -> float | None:
        """Seconds from the float model to the artifact; None where they are not known."""
        return sum(self.stages.values()) if self.stages else None


@dataclass(frozen=True, eq=False)
class Source:
    """What all engines start from.

    Attributes:
        program: the float model, a ``.pt2`` archive.
        samples: calibration data.
        threads: numbers of threads to prepare for.
        options: what the user says about engines.
    """

    program: Path
    samples: Samples
    threads: tuple[int, ...]
    options: PeerOptions


def described(peer: Peer, options: PeerOptions) -> Artifact:
    """The engine with its version and settings, or with the reason of its absence, and no model yet."""
    probe = peer.probe(peer, options)
    file, _, function = peer.session.partition(":")
    return Artifact(
        peer.name,
        probe.version,
        peer.dtype,
        settings={**peer.settings, **peer.chosen(options)},
        interpreter=peer.interpreter(options),
        session=f"{SESSIONS / file}.py:{function}",
        absent=probe.absent,
    )


def prepare(peer: Peer, source: Source, folder: Path) -> Artifact:
    """Makes an engine's artifact, unless ``folder`` holds one of the same model, version and settings.

    Whatever an engine raises becomes the reason of its absence; an engine that failed is tried again next time. One
    that was interrupted finds what it had left.

    Args:
        peer: the engine.
        source: the model and its data.
        folder: the artifact's own; what is in it is replaced.
    """
    empty = described(peer, source.options)
    if empty.absent is not None:
        return empty
    key = _key(peer, empty, source)
    kept = _read(folder, empty, key, source.threads)
    if kept is not None and kept.absent is None:
        return kept
    mark = folder / KEY
    interrupted = mark.exists() and not (folder / RECORD).exists()
    resumed = interrupted and mark.read_text(encoding="utf-8") == key
    if folder.exists() and not resumed:
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(key, encoding="utf-8")
    request = Request(source.program, source.samples, folder, source.threads, source.options)
    made, stages, fault = _run(peer, request)
    if made is None:
        result = replace(empty, absent=f"cannot prepare this model: {fault}")
    else:
        # What an interrupted preparation took before is not known.
        result = replace(empty, models=made.models, size=made.size, stages={} if resumed else stages)
    _write(folder, result, key)
    return result


def prepared(peer: Peer, source: Source, folder: Path) -> Artifact:
    """What an earlier :func:`prepare` left in ``folder``; an absence where that is nothing, or of something else."""
    empty = described(peer, source.options)
    if empty.absent is not None:
        return empty
    kept = _read(folder, empty, _key(peer, empty, source), source.threads)
    if kept is None:
        return replace(
            empty, absent=f"{folder} holds nothing of this model, version and settings; prepare it first"
        )
    return kept


def _key(peer: Peer, empty: Artifact, source: Source) -> str:
    """Says what an artifact was made of."""
    digest = hashlib.sha256(source.program.read_bytes())
    for array in source.samples.inputs:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes())
    digest.update(
        json.dumps([empty.version, dict(empty.settings), source.samples.batch, peer.stamp()]).encode()
    )
    return digest.hexdigest()


def _write(folder: Path, artifact: Artifact, key: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    record = asdict(artifact) | {
        "key": key,
        "models": {str(threads): str(path.relative_to(folder)) for threads, path in artifact.models.items()},
    }
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _read(folder: Path, empty: Artifact, key: str, threads: tuple[int, ...]) -> Artifact | None:
    """What the folder holds, if it was made of the same and serves these numbers of threads."""
    path = folder / RECORD
    if not path.is_file():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record["key"] != key:
        return None
    if record["absent"] is not None:
        return replace(empty, absent=record["absent"])
    models = {int(count): folder / name for count, name in record["models"].items()}
    if not set(threads) <= set(models) or not all(model.exists() for model in models.values()):
        return None
    return replace(empty, models=models, size=record["size"], stages=record["stages"])


def _run(peer: Peer, request: Request) -> tuple[Made | None, Mapping[str, float], str]:
    """Runs ``peer.prepare`` in a fresh process: engines change global state, and each other's packages.

    Returns:
        What it made, or None; the seconds of its steps; and if there is nothing, why.
    """
    with tempfile.TemporaryDirectory(prefix="qcompiler-prepare-") as scratch:
        job, answer = Path(scratch) / "job", Path(scratch) / "answer"
        job.write_bytes(pickle.dumps((peer.prepare, request)))
        log = request.folder / LOG
        with log.open("w", encoding="utf-8") as output:
            status = subprocess.run(
                [sys.executable, "-m", __spec__.name, str(job), str(answer)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            ).returncode
        if answer.exists():
            result: tuple[Made | None, Mapping[str, float], str] = pickle.loads(answer.read_bytes())
            return result
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return None, {}, f"its process ended with status {status}" + (f": {lines[-1]}" if lines else "")


def main() -> None:
    """The process of :func:`_run`; arguments: the pickled job, and the file of the pickled answer."""
    job, answer = map(Path, sys.argv[1:])
    stages = Stages()
    made, fault = None, ""
    try:
        function, request = pickle.loads(job.read_bytes())
        made = function(request, stages)
    except Exception as error:  # whatever a foreign engine raises is a fact about it, and is shown
        traceback.print_exc()
        words = [line.strip() for line in str(error).splitlines() if line.strip()]
        fault = f"{type(error).__name__}: {words[0]}" if words else type(error).__name__
    answer.write_bytes(pickle.dumps((made, stages.seconds, fault)))


if __name__ == "__main__":
    main()
