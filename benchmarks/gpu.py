"""ResNet-50 in int8 on a GPU beside PyTorch in float16, and its matrix products beside ``torch._int_mm``.

    pip install --no-deps torchvision; pip install -e '.[cuda]'
    python benchmarks/gpu.py --output results/gpu

PyTorch runs channels-last, compiled, in CUDA graphs (``mode="reduce-overhead"``). All engines have their inputs in the
GPU's memory. Times are between two CUDA events around ``--runs`` runs; the engines take turns, all in one process, and the
median of the rounds counts. The folder gets ``gpu.json`` and ``gpu.md``. Without a GPU the script says so and ends with
status 2.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import torch

import qcompiler
from qcompiler.errors import QCompilerError
from qcompiler.runtime.gpu import Gpu, first_gpu
from qcompiler.targets import cuda
from qcompiler.targets.base import GpuTarget
from qcompiler.targets.cpu.shapes import ConvShape

NETWORK = "resnet50"

OWN, PEER, PRODUCT = "qcompiler int8", "PyTorch float16", "torch._int_mm"

Run = Callable[[], object]
Record = dict[str, Any]

PRODUCTS = {
    "layer1 1x1": (56 * 56, 64, 256),
    "layer2 1x1": (28 * 28, 512, 128),
    "layer2 3x3": (28 * 28, 9 * 128, 128),
    "layer3 1x1": (14 * 14, 1024, 256),
    "layer3 3x3": (14 * 14, 9 * 256, 256),
    "layer4 1x1": (7 * 7, 2048, 512),
    "layer4 3x3": (7 * 7, 9 * 512, 512),
}
"""Pixels of an image, k and output channels of ResNet-50's convolutions, as matrix products."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    try:
        gpu = first_gpu()
        if not torch.cuda.is_available():
            raise QCompilerError(f"PyTorch {torch.__version__} was built without CUDA, or finds no GPU")
        target = target_of(gpu)
    except QCompilerError as error:
        print(f"nothing was measured: {error}", file=sys.stderr)
        return 2
    records: list[Record] = []
    for batch in options.batches:
        records += _network(batch, target, options)
        records += _products(batch, target, options)
    about = {
        "gpu": torch.cuda.get_device_name(), "capability": gpu.capability, "multiprocessors": gpu.multiprocessors,
        "torch": torch.__version__, "qcompiler": qcompiler.__version__, "runs": options.runs, "rounds": options.rounds,
    }  # fmt: skip
    options.output.mkdir(parents=True, exist_ok=True)
    content = json.dumps({"about": about, "records": records}, indent=1)
    (options.output / "gpu.json").write_text(content + "\n", encoding="utf-8")
    text = table(about, records)
    (options.output / "gpu.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def target_of(gpu: Gpu) -> GpuTarget:
    """The target whose machine code is for this very GPU.

    Raises:
        QCompilerError: there is none; code for another one would say little.
    """
    found = next((t for t in cuda.CHIPS if t.architectures == (f"sm_{gpu.capability}",)), None)
    if found is None:
        known = ", ".join(t.name for t in cuda.CHIPS)
        raise QCompilerError(f"no target is for compute capability {gpu.capability / 10}; there are {known}")
    return found


def alternate(
    engines: Mapping[str, Run], time: Callable[[Run], float], rounds: int
) -> dict[str, list[float]]:
    """What ``time`` says of each engine, in rounds in which all of them take turns, after one that does not count."""
    times: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        for name, run in engines.items():
            taken = time(run)
            if number:
                times[name].append(taken)
    return times


def between_events(runs: int) -> Callable[[Run], float]:
    """Milliseconds of one run, by CUDA events around ``runs`` of them."""

    def time(run: Run) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(runs):
            run()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / runs

    return time


def records_of(what: str, batch: int, times: Mapping[str, Sequence[float]], **more: Any) -> list[Record]:
    """A record for each engine."""
    return [
        {"what": what, "batch": batch, "engine": name, "median": statistics.median(t), "least": min(t), "most": max(t), **more}
        for name, t in times.items()
    ]  # fmt: skip


def table(about: Mapping[str, Any], records: Sequence[Record]) -> str:
    """The records as Markdown: a row a thing measured, with how many times as long the peer takes."""
    cells: dict[tuple[str, int], dict[str, Record]] = {}
    for record in records:
        cells.setdefault((record["what"], record["batch"]), {})[record["engine"]] = record
    lines = [
        f"{about['gpu']}, PyTorch {about['torch']}, qcompiler {about['qcompiler']}; milliseconds, medians of "
        f"{about['rounds']} alternating rounds of {about['runs']} runs.",
        "",
        f"| what | batch | {OWN} | peer | its time | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for (what, batch), engines in cells.items():
        own = engines[OWN]["median"]
        for name, record in engines.items():
            if name != OWN:
                peer = record["median"]
                lines.append(f"| {what} | {batch} | {own:.3f} | {name} | {peer:.3f} | {peer / own:.2f} |")
    return "\n".join(lines) + "\n"


def _network(batch: int, target: GpuTarget, options: argparse.Namespace) -> list[Record]:
    """The whole network."""
    model, x = models.make(NETWORK), models.images(batch, 100)
    with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
        bundle = Path(folder) / "bundle"
        qcompiler.compile(
            model, (x,), calibration=[models.images(batch, 200)], output=bundle, target=target.name,
            log=options.log, tuned=not options.no_log,
        )  # fmt: skip
        exact = _exact(bundle, x, Path(folder)) if batch == 1 else None
        own = _bundle(bundle, x.numpy())
        half = model.half().cuda().to(memory_format=torch.channels_last)
        image = x.half().cuda().to(memory_format=torch.channels_last)
        compiled = torch.compile(half, mode="reduce-overhead", fullgraph=True)
        with torch.inference_mode():
            times = alternate({OWN: own, PEER: lambda: compiled(image)}, between_events(options.runs), options.rounds)  # fmt: skip
    return records_of(NETWORK, batch, times, exact=exact)


def _exact(bundle: Path, x: torch.Tensor, folder: Path) -> bool:
    """Whether the GPU's outputs are the reference's in every bit."""
    from qcompiler.driver.verify import verify

    np.savez(folder / "data.npz", x=x.numpy())
    checked = verify(bundle, folder / "data.npz", limit=len(x))
    return checked.fault is None and all(output.exact for output in checked.outputs)


def _bundle(bundle: Path, x: np.ndarray) -> Run:
    """Runs of a bundle whose input lies in the GPU's memory, as its output does."""
    from qcompiler.runtime import library
    from qcompiler.runtime.bundle import read_manifest
    from qcompiler.runtime.gpu import Placement

    manifest, placement = read_manifest(bundle), Placement(gpu=True)
    module = library.load_library(bundle, manifest)
    arrays = [x, *library.map_constants(bundle, manifest)]
    tensors = [placement.to_model(library.import_ffi().from_dlpack(a)) for a in arrays]
    main = library.new_machine(module, placement.devices)[library.ENTRY]
    return lambda: main(*tensors)


def _products(batch: int, target: GpuTarget, options: argparse.Namespace) -> list[Record]:
    """The matrix products behind the convolutions; this compiler's end with bytes, PyTorch's with sums of int32."""
    records = []
    for name, (pixels, depth, columns) in PRODUCTS.items():
        rows = max(batch * pixels, 17)  # torch._int_mm takes more than 16 rows
        with tempfile.TemporaryDirectory(prefix="qcompiler-") as folder:
            own = _product(rows, depth, columns, target, Path(folder) / "product.so")
            a = torch.randint(-128, 128, (rows, depth), dtype=torch.int8, device="cuda")
            b = torch.randint(-128, 128, (columns, depth), dtype=torch.int8, device="cuda").t()
            peer = _bound(torch._int_mm, a, b)
            times = alternate({OWN: own, PRODUCT: peer}, between_events(options.runs), options.rounds)
        records += records_of(f"{name}: {rows} x {depth} x {columns}", batch, times)
    return records


def _product(rows: int, depth: int, columns: int, target: GpuTarget, library: Path) -> Run:
    """Runs of one matrix product with its last step, in the tile that it has without tuning."""
    import tvm

    from qcompiler.driver.gpu.build import build_functions
    from qcompiler.targets import registry
    from qcompiler.targets.cuda.decisions import choose_tile
    from qcompiler.targets.cuda.finish import Epilogue, Requantization
    from qcompiler.targets.cuda.gemm import Gemm
    from qcompiler.targets.cuda.layouts import BLOCK, pack_fragments

    shape = ConvShape(1, 1, rows, depth, columns, (1, 1), (1, 1), (0, 0, 0, 0), (1, 1), 1)
    epilogue = Epilogue(Requantization(0, 0, 255), None)
    gemm = Gemm(shape, epilogue, choose_tile(shape, target), 0, matrix=True)
    module = tvm.IRModule({"product": gemm.function().with_attr("global_symbol", "product")})
    build_functions(module, target, registry.to_tvm(target, 1), library)
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (columns, depth, 1, 1)).astype(np.int8)
    arrays = [
        rng.integers(0, 256, (rows, depth), np.uint8),
        pack_fragments(weight, 1, gemm.packed_depth),
        np.zeros(gemm.blocks * BLOCK, np.int32),
        np.full(gemm.blocks * BLOCK, 1e-4, np.float32),
        np.zeros((rows, columns), np.uint8),
    ]
    tensors = [tvm.runtime.tensor(a, tvm.cuda()) for a in arrays]
    function = tvm.runtime.load_module(str(library))["product"]
    return _bound(function, *tensors)


def _bound(function: Callable[..., object], *arguments: object) -> Run:
    return lambda: function(*arguments)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the table and the figures")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--runs", type=int, default=20, help="runs between two events")
    parser.add_argument("--log", type=Path, help="folder of a tuning log")
    parser.add_argument("--no-log", action="store_true", help="compile with no tuning log")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
