"""Tunes a model: from what the user gives to a log of its kernels' schedules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from qcompiler.config import CompileConfig, TuneConfig
from qcompiler.driver import quantized as driver
from qcompiler.driver.compile import integer_model
from qcompiler.driver.gpu import nvrtc
from qcompiler.driver.kernels import kernels
from qcompiler.driver.tuning.fleet import LocalFleet
from qcompiler.driver.tuning.log import KEY, Key
from qcompiler.driver.tuning.tasks import extract
from qcompiler.driver.tuning.tune import Fleet, Say, Tuned, tune_tasks
from qcompiler.driver.tuning.writer import LogWriter
from qcompiler.errors import ConfigError, GpuError, TargetError
from qcompiler.passes import pipeline
from qcompiler.runtime.gpu import compute_capability
from qcompiler.runtime.threads import available_cpus, default_threads
from qcompiler.targets import registry
from qcompiler.targets.base import GpuTarget, Target
from qcompiler.targets.host import read_host


def tune_model(
    model: driver.Model,
    config: CompileConfig,
    tuning: TuneConfig,
    *,
    calibration: driver.Calibration,
    example_inputs: tuple[torch.Tensor, ...] | None = None,
    say: Say = lambda line: None,
) -> Tuned:
    """Searches schedules for a model's kernels and keeps what is measured in a log.

    Args:
        model: as for :func:`qcompiler.driver.compile.compile_model`.
        config: how the model is compiled: its target, its quantization.
        tuning: how it is tuned.
        calibration: as for compiling.
        example_inputs: as for compiling.
        say: gets a line a round of the search.

    Raises:
        TuningLogError: the log's folder holds a log for something else, or cannot be written.
        TuningError: nothing can be measured.
        TargetError: this machine has not the chip to measure on.
        QCompilerError: as when compiling.
    """
    target = registry.resolve(config.target)
    threads = _threads(target, tuning)
    make_fleet = _fleet(target, threads, tuning, say)
    # A log for something else is found out before the model is calibrated.
    folder = tuning.log or Path("tuning_logs")
    folder = folder if tuning.log is not None and not _holds_logs(folder) else folder / target.name
    tvm_target = registry.to_tvm(target, cores=1)
    writer = LogWriter(folder, Key.of(target, threads), tvm_target)
    program = driver.program_of(model, example_inputs, config)
    quantized = driver.quantized_program(program, target, config, calibration)
    dump = pipeline.Dump(config.dump_ir)
    integer = integer_model(quantized, config, dump)
    physical = pipeline.to_physical(integer.module, target, tvm_target, dump=dump, **kernels(target))
    tasks = extract(physical, tuning.layers)
    if not tasks:
        raise ConfigError("the model has no kernel to tune: none of its layers is a convolution or a product")
    say(
        f"{len(tasks)} kernels of {sum(t.weight for t in tasks)} layers, for {target.name} at threads {threads}"
    )
    tuned = tune_tasks(tasks, target, tvm_target, writer, make_fleet, threads, tuning, say)
    return replace(tuned, optimizations=quantized.optimizations)


def _threads(target: Target, tuning: TuneConfig) -> tuple[int, ...]:
    """Numbers of threads to measure at."""
    if isinstance(target, GpuTarget):
        if tuning.threads:
            raise ConfigError(
                f"threads is given, and target {target.name} is a GPU, whose kernels have threads of their own; leave it out"
            )
        return (1,)
    if tuning.rpc is not None and not tuning.threads:
        raise ConfigError(
            "threads is not given; with rpc give the numbers of threads of the devices: --threads 1,4"
        )
    return tuple(sorted(set(tuning.threads or (1, default_threads()))))


def _check_gpu(target: GpuTarget) -> None:
    """Refuses to measure kernels on another GPU than they are for.

    Raises:
        TargetError: this machine has none, or another one.
    """
    there = (
        "measure on a machine that has it: there 'python -m tvm.exec.rpc_server --tracker HOST:PORT --key KEY', somewhere "
        "'python -m tvm.exec.rpc_tracker --host 0.0.0.0 --port PORT', and here --rpc HOST:PORT --key KEY; kernels are built here, "
        "without a GPU"
    )
    try:
        capability = compute_capability()
    except GpuError as error:
        raise TargetError(f"kernels for {target.name} are measured on a GPU: {error}; or {there}") from error
    if f"sm_{capability}" not in target.architectures:
        raise TargetError(
            f"target {target.name} is for {', '.join(target.architectures)}, and this GPU is sm_{capability}: times of one say "
            f"little of another; tune for cuda-sm{capability}, or {there}"
        )


def _holds_logs(folder: Path) -> bool:
    """Whether this is a folder of logs, one a target, and no log itself."""
    return not (folder / KEY).is_file() and any(folder.glob(f"*/{KEY}"))


def _fleet(target: Target, threads: tuple[int, ...], tuning: TuneConfig, say: Say) -> Callable[[], Fleet]:
    if isinstance(target, GpuTarget):
        nvrtc.toolkit()  # said before anything else is done
    if tuning.rpc is not None:
        from qcompiler.driver.tuning.boards import BoardFleet

        host, _, port = tuning.rpc.rpartition(":")
        return lambda: BoardFleet(
            target, tuning.jobs, (host, int(port)), str(tuning.key), tuning.rpc_timeout, say
        )
    if isinstance(target, GpuTarget):
        _check_gpu(target)
        return lambda: LocalFleet(target, tuning.jobs)
    missing = sorted(set(target.required_features) - read_host().features)
    if missing:
        raise TargetError(
            f"target {target.name} does not run here: this processor lacks {', '.join(missing)}; "
            "measure on a device that has it: --rpc HOST:PORT --key KEY"
        )
    cpus = len(available_cpus())
    if max(threads) > cpus:
        raise ConfigError(f"threads is {max(threads)}; this process may use {cpus} CPUs: give 1 to {cpus}")
    return lambda: LocalFleet(target, tuning.jobs)
