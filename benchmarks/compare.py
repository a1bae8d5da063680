"""Measures networks beside other engines: latency, compile time, start, memory, size.

    pip install --no-deps torchvision && pip install -e '.[peers,plots]'
    python benchmarks/compare.py --output results/ resnet18 resnet50 mobilenet_v2

Every engine gets the same float network and the same 16 images, makes of it what it likes best (the settings are in
``qcompiler/driver/peers``, one file an engine, and in the table), and runs in a fresh process that holds nothing but Python,
NumPy and the engine. Rounds of all engines alternate, at 1 and 2 threads and batch 1 and 8; medians count.

A run can be cut at any time: what engines made of a network is kept in ``--work``, what was measured in
``results.json``, and the next run does the rest. ``--only prepare``, ``--only measure`` and ``--only report`` do a part.
Run it on an idle machine: the threads of a run share the work evenly, so one busy core halves everybody's speed.
"""

from __future__ import annotations

import argparse
import datetime
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import models
import plots
import roofline
import tables
from job import Job
from store import Store

from qcompiler import runtime
from qcompiler.driver.bench import find_peers, measure
from qcompiler.driver.bench_artifacts import Artifact, prepare, prepared
from qcompiler.driver.peers import PEERS, Peer, PeerOptions, own

DEFAULT_NETWORKS = models.NAMES[:6]
DEFAULT_PEERS = ("onnxruntime", "openvino")


def jobs(arguments: argparse.Namespace) -> Iterator[Job]:
    options = PeerOptions(arguments.executorch_python, arguments.tvm_trials)
    for network in arguments.names or DEFAULT_NETWORKS:
        for batch in arguments.batches:
            folder = arguments.work / f"{network}-batch{batch}"
            yield Job(network, batch, folder, tuple(arguments.threads), options)


def prepare_all(job: Job, engines: Sequence[Peer], deadline: float) -> None:
    """Makes each engine's artifact, or finds that it is there, while there is time."""
    job.write()
    for peer in engines:
        if time.monotonic() > deadline:
            return
        begin = time.perf_counter()
        artifact = prepare(peer, job.source(), job.folder / peer.name)
        state = (
            f"absent: {artifact.absent}"
            if artifact.absent
            else f"compiled in {artifact.seconds or math.nan:.1f} s"
        )
        print(
            f"{job.network} batch {job.batch} {peer.name}: {state} ({time.perf_counter() - begin:.1f} s)",
            flush=True,
        )


def measure_cell(job: Job, threads: int, artifacts: Sequence[Artifact], arguments: argparse.Namespace) -> Any:
    """Records of the engines, measured beside ours in one session."""
    result = measure(
        artifacts,
        [job.data()[: job.batch]],
        [threads],
        rounds=arguments.rounds,
        starts=arguments.starts,
        expected=job.expected(),
    )
    if result.busy:
        print(
            f"The machine was not idle (other programs: {result.others:.2f} cores; the median round took "
            f"{result.spread:.2f} times the fastest): this cell is to be measured again"
        )
    own_row = next((t for t in result.timings if t.engine == own.OWN), None)
    for timing in result.timings:
        speed = "absent" if timing.median is None else f"{timing.median * 1e3:.3f} ms"
        ratio = "" if timing.ratio is None else f", {timing.ratio:.2f} times ours"
        print(
            f"{job.network} batch {job.batch} {threads} threads {timing.engine}: {speed}{ratio}", flush=True
        )
    return [
        {
            "model": job.network,
            "batch": job.batch,
            **asdict(timing),
            "own_median": None if own_row is None else own_row.median,
            "stamp": own.stamp(),
            "rounds": result.rounds,
            "starts": result.starts,
            "cpu": result.cpu,
            "others": result.others,
            "spread": result.spread,
            "busy": result.busy,
            "date": datetime.date.today().isoformat(),
        }
        for timing in result.timings
    ]


def measure_all(job: Job, engines: Sequence[Peer], store: Store, arguments: argparse.Namespace) -> None:
    """Measures the cells of a job that have no result yet, while there is time."""
    artifacts = {peer.name: prepared(peer, job.source(), job.folder / peer.name) for peer in engines}
    for threads in job.threads:
        cell = (job.network, job.batch, threads)
        missing = store.missing(artifacts, cell, own.stamp())
        if not missing or time.monotonic() > arguments.deadline:
            continue
        # Engines that come later are measured beside ours again, and its first record stays.
        runs = any(artifacts[name].absent is None for name in missing)
        chosen = dict.fromkeys([own.OWN, *missing] if runs else missing)
        records = measure_cell(job, threads, [artifacts[name] for name in chosen], arguments)
        store.add(record for record in records if record["engine"] in missing)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"networks; {', '.join(DEFAULT_NETWORKS)} if none is given")
    parser.add_argument("--against", nargs="*", default=list(DEFAULT_PEERS), choices=list(PEERS))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each engine in a cell")
    parser.add_argument("--starts", type=int, default=3, help="fresh processes whose start is measured")
    parser.add_argument("--output", type=Path, default=Path("results"), help="folder of results and plots")
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"), help="folder of artifacts")
    parser.add_argument("--only", choices=["prepare", "measure", "report"], help="do one part")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing afterwards")
    parser.add_argument("--roofline", default="resnet50", help="network whose layers are drawn")
    parser.add_argument("--executorch-python", type=Path, help="a Python interpreter that has ExecuTorch")
    parser.add_argument("--tvm-trials", type=int, default=200, help="trials of TVM's own search, a network")
    arguments = parser.parse_args()
    arguments.deadline = time.monotonic() + 60 * arguments.minutes
    return arguments


def main() -> None:
    arguments = parse()
    engines = [own.PEER, *find_peers(arguments.against)]
    store = Store.open(arguments.output / "results.json")
    for job in jobs(arguments):
        if arguments.only in (None, "prepare"):
            prepare_all(job, engines, arguments.deadline)
        if arguments.only in (None, "measure"):
            measure_all(job, engines, store, arguments)
            bundle = job.folder / own.OWN / "bundle"
            if job.network == arguments.roofline and job.batch == 1 and bundle.exists():
                for threads in job.threads:
                    name = f"{job.network}-{threads}"
                    if store.rooflines.get(name, {}).get("stamp") != own.stamp():
                        store.rooflines[name] = roofline.layers(bundle, threads) | {"stamp": own.stamp()}
                        store.write()
    if arguments.only in (None, "report") and store.records:
        (arguments.output / "table.md").write_text(tables.markdown(store.records), encoding="utf-8")
        plots.write(store, arguments.output)
        print(tables.markdown(store.records))
    print(f"CPU: {runtime.cpu_name()}")


if __name__ == "__main__":
    main()
