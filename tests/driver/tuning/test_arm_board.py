"""Tuning for ARM on a device behind a tracker: an emulated one, whose times mean nothing and whose outputs are checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import arm_board
import numpy as np
import pytest
from qc_modules import const, make, why_not_emulated
from rpc import KEY, free_port, started, until_known
from small_tuning import THREADS, convolution, physical
from tvm import relax

from qcompiler import operators
from qcompiler.config import TuneConfig
from qcompiler.driver.tuning import log as logs
from qcompiler.driver.tuning.apply import TunedScheduler
from qcompiler.driver.tuning.boards import BoardFleet
from qcompiler.driver.tuning.log import Key
from qcompiler.driver.tuning.tasks import extract
from qcompiler.driver.tuning.trial import Run, Timing
from qcompiler.driver.tuning.tune import tune_tasks
from qcompiler.driver.tuning.writer import LogWriter
from qcompiler.targets import registry

TRIALS = 8


def depthwise(x: relax.Expr, channels: int) -> relax.Expr:
    """``qc.conv2d`` with a group a channel; NCHW."""
    weight = np.random.default_rng(1).integers(-127, 128, (channels, 1, 3, 3)).astype(np.int8)
    rest = (np.full(channels, 40, np.int32), np.full(channels, 3e-3, np.float32))
    return operators.call(
        "qc.conv2d", [x, const(weight), *(const(c) for c in rest)], strides=[1, 1], padding=[0] * 4,
        dilation=[1, 1], groups=channels, layout="NCHW", pad_value=0, zero_point=9, lo=0, hi=255, residual_shift=0,
        out_dtype="uint8", accumulator_bound=2**20,
    )  # fmt: skip


def network() -> Any:
    def build(emit: Callable[..., Any], x: relax.Var) -> relax.Expr:
        y = emit(convolution(x, 16, 24, 3, 7))
        return depthwise(y, 24)

    return make(build, ((1, 16, 8, 9), "uint8"))


class Spoiling:
    """A fleet whose first job is checked against an expectation that is wrong in one byte."""

    def __init__(self, fleet: BoardFleet) -> None:
        self._fleet = fleet
        self.build, self.close = fleet.build, fleet.close
        self.spoiled: list[Timing] = []

    def run(self, jobs: list[Run]) -> list[list[Timing]]:
        if not self.spoiled:
            job = jobs[0]
            with np.load(job.data) as archive:
                arrays = dict(archive)
            arrays["expected"].reshape(-1)[5] ^= 1
            data = Path(job.data).with_name("spoiled.npz")
            np.savez(data, **arrays)
            ((self.spoiled),) = self._fleet.run([dataclasses.replace(job, data=str(data))])
        return self._fleet.run(jobs)


@pytest.mark.slow
def test_candidates_run_and_are_checked_on_an_emulated_device(tmp_path: Path) -> None:
    if (reason := why_not_emulated()) is not None:
        pytest.skip(reason)
    target = registry.resolve("arm-dotprod")
    tvm_target = registry.to_tvm(target, 1)
    program = arm_board.build(tmp_path)
    tracker, port = free_port(), free_port()
    tasks = extract(physical(network(), target=target))
    assert [t.workload.operator for t in tasks] == ["conv2d", "depthwise_conv2d"]
    with started("rpc_tracker", "--port", str(tracker), "--port-end", str(tracker + 1)):
        until_known(("127.0.0.1", tracker), 0)
        with arm_board.started(program, tracker, KEY, port, "neoverse-n1"):
            until_known(("127.0.0.1", tracker), 1)
            fleet = Spoiling(BoardFleet(target, 2, ("127.0.0.1", tracker), KEY, 60, lambda line: None))
            writer = LogWriter(tmp_path / "log", Key.of(target, THREADS), tvm_target)
            config = TuneConfig(trials=TRIALS, batch=3, min_gain=0.0, threads=THREADS)
            result = tune_tasks(
                tasks, target, tvm_target, writer, lambda: fleet, THREADS, config, lambda _: None
            )
    assert (result.trials, result.failed, result.wrong) == (TRIALS, 0, 0)
    (spoiled,) = fleet.spoiled
    assert spoiled.wrong
    assert spoiled.fault is not None
    assert "differs from the reference in 1 bytes" in spoiled.fault
    log = logs.read(tmp_path / "log")
    log.key.check(log.folder, target)
    assert sum(map(len, log.records.values())) == TRIALS
    assert {k.name for k in result.kernels} == {t.name for t in tasks}
    again = physical(network(), TunedScheduler([log], tvm_target), target)
    assert [layer.schedule for layer in again.layers if layer.operator == "conv2d"] == ["tuned", "tuned"]
