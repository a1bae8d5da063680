"""Tuning for GPUs on a simulated one, whose times mean nothing and whose outputs are checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gpu_simulator
import numpy as np
import pytest
import qc_modules
import tvm
from rpc import KEY, free_port, started, until_known
from small_tuning import module, physical

from qcompiler.config import CompileConfig, TuneConfig
from qcompiler.driver.gpu import embed, limits, nvrtc
from qcompiler.driver.tuning import log as logs
from qcompiler.driver.tuning import model
from qcompiler.driver.tuning.apply import TunedScheduler
from qcompiler.driver.tuning.boards import BoardFleet
from qcompiler.driver.tuning.decisions import plain, to_json
from qcompiler.driver.tuning.fleet import LocalFleet
from qcompiler.driver.tuning.log import Key
from qcompiler.driver.tuning.model import tune_model
from qcompiler.driver.tuning.tasks import extract, prepare
from qcompiler.driver.tuning.trial import Build, Run
from qcompiler.driver.tuning.tune import tune_tasks
from qcompiler.driver.tuning.writer import LogWriter
from qcompiler.errors import ConfigError, GpuError, TargetError
from qcompiler.targets import cuda, registry
from qcompiler.targets.base import GpuTarget
from qcompiler.targets.workload import finish, sketched

TARGET = replace(cuda.SM80, l2_bytes=4096)
"""With a small cache, so that few copies of the weights fill it."""

WIDTH = 4
"""Of the images: few pixels are quick to simulate."""

TVM_TARGET = registry.to_tvm(TARGET, 1)


class SimulatedFleet:
    """Builds for the simulated GPU in this process, and runs as ``inner`` does, in processes that have it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.run, self.close = inner.run, inner.close

    def build(self, jobs: list[Build]) -> list[str | None]:
        from qcompiler.driver.tuning.trial import build

        for job in jobs:
            build(job)
        return [None] * len(jobs)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code is compiled for the simulated GPU, and processes that are started have it."""
    if (reason := gpu_simulator.why_not()) is not None:
        pytest.skip(reason)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(gpu_simulator.driver()))

    def compile_source(source: str, architectures: tuple[str, ...]) -> nvrtc.GpuCode:
        return nvrtc.GpuCode({}, b"", "compute_80", gpu_simulator.host_code(source), {})

    monkeypatch.setattr(nvrtc, "compile_source", compile_source)


def check_log(folder: Path, trials: int) -> None:
    """The log has what was measured, and a model that is compiled with it computes what the reference does."""
    log = logs.read(folder)
    log.key.check(folder, TARGET)
    assert not log.faults
    assert sum(map(len, log.records.values())) == trials
    scheduler = TunedScheduler([log], TVM_TARGET)
    lowered = physical(module(WIDTH), scheduler, TARGET)
    assert [layer.schedule for layer in lowered.layers if layer.macs] == ["tuned", "tuned", "default"]
    rng = np.random.default_rng(0)
    samples = [[rng.integers(0, 256, (1, 16, 6, WIDTH), np.uint8)]]
    built = qc_modules.build(module(WIDTH), TARGET, scheduler)
    for found, wanted in zip(
        qc_modules.run(built, samples), qc_modules.reference(module(WIDTH), samples), strict=True
    ):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.slow
@pytest.mark.usefixtures("simulated")
def test_candidates_are_checked_timed_recorded_and_used(tmp_path: Path) -> None:
    writer = LogWriter(tmp_path / "log", Key.of(TARGET, (1,)), TVM_TARGET)
    tasks = extract(physical(module(WIDTH), target=TARGET))[:1]
    config = TuneConfig(trials=2, batch=2, min_gain=0.0)
    result = tune_tasks(
        tasks, TARGET, TVM_TARGET, writer, lambda: SimulatedFleet(LocalFleet(TARGET, 1)), (1,), config, print
    )
    assert (result.trials, result.failed, result.wrong) == (2, 0, 0)
    assert all(kernel.default_seconds[0] > 0 for kernel in result.kernels)
    check_log(tmp_path / "log", 2)


@pytest.mark.usefixtures("simulated")
def test_a_wrong_output_is_found(tmp_path: Path) -> None:
    (task, *_) = extract(physical(module(WIDTH), target=TARGET))
    files = prepare(task, tmp_path / "task", TARGET.l2_bytes)
    assert max(files.copies) > 1, "weights that lie one after the other"
    trace = to_json(sketched(task.neutral, 1).trace)
    library = str(tmp_path / "1.so")
    fleet = SimulatedFleet(LocalFleet(TARGET, 1))
    try:
        fleet.build([Build(files.module, trace, files.copies, plain(TVM_TARGET.export()), library, TARGET)])
        ((right,),) = fleet.run([Run((library,), files.data, files.copies, (1,), gpu=True)])
        with np.load(files.data) as archive:
            arrays: dict[str, Any] = dict(archive)
        arrays["expected"].reshape(-1)[-1] ^= 1
        np.savez(tmp_path / "data.npz", **arrays)
        ((wrong,),) = fleet.run([Run((library,), str(tmp_path / "data.npz"), files.copies, (1,), gpu=True)])
    finally:
        fleet.close()
    assert right.fault is None
    assert right.seconds[0] > 0
    assert wrong.wrong
    assert "differs from the reference in 1 bytes" in (wrong.fault or "")


@pytest.mark.slow
@pytest.mark.usefixtures("simulated")
def test_a_gpu_behind_a_tracker(tmp_path: Path) -> None:
    tracker, port = free_port(), free_port()
    writer = LogWriter(tmp_path / "log", Key.of(TARGET, (1,)), TVM_TARGET)
    tasks = extract(physical(module(WIDTH), target=TARGET))[:1]
    config = TuneConfig(trials=1, batch=2, min_gain=0.0)
    with started("rpc_tracker", "--port", str(tracker), "--port-end", str(tracker + 1)):
        address = ("127.0.0.1", tracker)
        ports = ["--port", str(port), "--port-end", str(port + 1)]
        with started("rpc_server", *ports, "--tracker", f"127.0.0.1:{tracker}", "--key", KEY):
            until_known(address, 1)
            result = tune_tasks(
                tasks, TARGET, TVM_TARGET, writer,
                lambda: SimulatedFleet(BoardFleet(TARGET, 1, address, KEY, 60, print)), (1,), config, print,
            )  # fmt: skip
    assert (result.trials, result.failed, result.wrong) == (1, 0, 0)
    check_log(tmp_path / "log", 1)


def test_every_sketch_is_a_kernel_within_the_limits() -> None:
    """Lowered for the GPU, each with the decisions that it begins with, and looked at by the verifier."""
    task = extract(physical(module(WIDTH), target=TARGET))[1]
    functions = {}
    for k in range(len(task.workload.sketches)):
        name = f"sketch_{k}"
        functions[name] = finish(sketched(task.workload, k)).with_attr("global_symbol", name)
    with embed.source_only(), limits.verified(TARGET) as kernels:
        tvm.compile(tvm.IRModule(functions), target=TVM_TARGET)
    assert len(kernels.threads) >= len(functions)


def test_machines_without_the_gpu_are_told_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def tuned(target: GpuTarget, **options: Any) -> None:
        config = TuneConfig(log=tmp_path / "log", **options)
        tune_model("missing.pt2", CompileConfig(target=target.name), config, calibration=None)

    monkeypatch.setattr(model, "compute_capability", no_gpu)
    with pytest.raises(
        TargetError, match=r"no NVIDIA driver.*python -m tvm.exec.rpc_server.*--rpc HOST:PORT --key KEY"
    ):
        tuned(TARGET)
    monkeypatch.setattr(model, "compute_capability", lambda: 86)
    with pytest.raises(TargetError, match=r"is for sm_80, and this GPU is sm_86.*tune for cuda-sm86.*--rpc"):
        tuned(TARGET)
    with pytest.raises(ConfigError, match="threads is given, and target cuda-sm80 is a GPU"):
        tuned(TARGET, threads=(1, 2))
    assert not (tmp_path / "log").exists()


def no_gpu() -> int:
    raise GpuError("no NVIDIA driver")
