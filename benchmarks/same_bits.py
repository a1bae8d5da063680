"""Runs one quantized network on many targets and compares every output bit, ARM under emulation.

    pip install --no-deps torchvision
    apt-get install qemu-user-static libc6-arm64-cross libstdc++6-arm64-cross
    python benchmarks/same_bits.py FOLDER --network resnet18 10 --network mobilenet_v2 10 \\
        --model resnet20.pt2 calibration.npz test.npz 100

A network is compiled for every target from the same calibration data and run on the same inputs; FOLDER gets models and
bundles. All bundles must hold the same reference, and every output of every target must equal the reference
interpreter's. The exit status is 1 where one does not. A target that neither this processor nor an emulator can run is
named as such, and is no success either.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import models
import numpy as np

from qcompiler import report
from qcompiler.config import CompileConfig
from qcompiler.driver.bundle import REFERENCE_NAME
from qcompiler.driver.compile import compile_model
from qcompiler.driver.cross.model import EmulatedModel, open_bundle, run_many
from qcompiler.driver.data import Array, read_samples
from qcompiler.driver.verify import same_bits
from qcompiler.errors import QCompilerError
from qcompiler.reference import Interpreter, load
from qcompiler.runtime import read_manifest

TARGETS = ("x86-znver4", "x86-avx2", "arm-neon", "arm-dotprod", "arm-i8mm")
"""Dot products of AVX-512 VNNI, AVX2 without them, and the three instructions of ARM."""


@dataclass(frozen=True)
class Network:
    """A network, and how many inputs it runs on.

    Attributes:
        name: for the table.
        archive: the exported network.
        calibration: ``.npz`` with calibration data.
        inputs: ``.npz`` with inputs.
        count: inputs to run.
    """

    name: str
    archive: Path
    calibration: Path
    inputs: Path
    count: int


@dataclass(frozen=True)
class Row:
    """One target's outputs of one network.

    Attributes:
        where: the processor that ran it, or why none did.
        values: output elements that were compared.
        differing: of them, those with other bits than the reference; None where nothing ran.
        digest: SHA-256 of all outputs.
        seconds: of the runs.
    """

    network: str
    inputs: int
    target: str
    where: str
    values: int = 0
    differing: int | None = None
    digest: str = ""
    seconds: float = 0.0


def of_torchvision(name: str, count: int, folder: Path) -> Network:
    """One of torchvision's networks with random weights, and images that calibration does not see."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    archive, calibration, inputs = place / f"{name}.pt2", place / f"{name}.npz", place / "inputs.npz"
    if not archive.exists():
        models.write(name, place)
    np.savez(inputs, x=models.images(count, 300).numpy())
    return Network(name, archive, calibration, inputs, count)


def compare(network: Network, targets: Sequence[str], folder: Path, threads: int) -> Iterator[Row]:
    """Compiles ``network`` for every target and runs it."""
    stored: bytes | None = None
    expected: list[tuple[Array, ...]] = []
    for target in targets:
        bundle = folder / network.name / target
        config = CompileConfig(target=target)
        compile_model(str(network.archive), config, calibration=network.calibration, output=bundle)
        reference = (bundle / REFERENCE_NAME).read_bytes()
        samples = read_samples(network.inputs, read_manifest(bundle).inputs, network.count)
        runs = [inputs for _, inputs in samples.batches()]
        if stored is None:
            stored = reference
            interpreter = Interpreter(load(bundle / REFERENCE_NAME))
            expected = [tuple(value.array for value in interpreter.run(inputs)) for inputs in runs]
        elif reference != stored:
            raise SystemExit(f"{network.name}: {target} and {targets[0]} are not the same quantized network")
        row = Row(network.name, samples.count, target, "")
        try:
            model = open_bundle(bundle, threads)
            begun = time.monotonic()
            found = run_many(model, runs)
        except QCompilerError as error:
            yield Row(network.name, samples.count, target, f"not run: {error}")
            continue
        seconds = time.monotonic() - begun
        pairs = [
            (a, b)
            for outputs, wanted in zip(found, expected, strict=True)
            for a, b in zip(outputs, wanted, strict=True)
        ]
        digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a, _ in pairs)).hexdigest()
        differing = sum(int(np.count_nonzero(~same_bits(a, b))) for a, b in pairs)
        where = f"QEMU, {model.cpu}" if isinstance(model, EmulatedModel) else "this processor"
        row = Row(
            network.name, samples.count, target, where, sum(a.size for a, _ in pairs), differing, digest, seconds
        )  # fmt: skip
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--network", nargs=2, action="append", default=[], metavar=("NAME", "INPUTS"))
    parser.add_argument(
        "--model", nargs=4, action="append", default=[], metavar=("PT2", "CALIBRATION", "DATA", "INPUTS")
    )
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    networks = [
        Network(Path(archive).stem, Path(archive), Path(calibration), Path(data), int(count))
        for archive, calibration, data, count in arguments.model
    ]
    networks += [of_torchvision(name, int(count), arguments.folder) for name, count in arguments.network]
    if not networks:
        parser.error("no network: give --network NAME INPUTS or --model PT2 CALIBRATION DATA INPUTS")
    rows = []
    for network in networks:
        for row in compare(network, arguments.targets.split(","), arguments.folder, arguments.threads):
            print(f"{row.network} {row.target}: {row.where}, {row.seconds:.0f} s", file=sys.stderr)
            rows.append(row)
    report.show(
        report.table(
            "Outputs against the reference interpreter",
            ["network", ">inputs", "target", "run by", ">values", ">with other bits", "SHA-256 of the outputs"],
            [
                (
                    row.network, str(row.inputs), row.target, row.where, str(row.values),
                    "-" if row.differing is None else str(row.differing), row.digest[:16],
                )
                for row in rows
            ],
        )
    )  # fmt: skip
    if any(row.differing != 0 for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
