"""TVM's own flow: float32 Relax, MetaSchedule's default rules, weights laid out as the schedules want them."""

from __future__ import annotations

import os
from pathlib import Path

from qcompiler.driver.peers.base import Made, Peer, Request, Stage, size_of

BUILD_SECONDS = 240
"""Longer than any candidate takes on a busy machine; one that ran out of time would be lost to the search."""

SETTINGS = {
    "model": "float32: TVM imports int8 programs as dequantize, float operator, quantize",
    "search": "tune_relax with the default space for the CPU, gradient scheduler, xgboost cost model; as many trials "
    "as asked for (the key trials), spread over all kernels",
    "compiler": "the passes of TVM's static_shape_tuning_pipeline with cpu_weight_prepack, opt_level 3",
    "session": "runtime library without the compiler, runtime.config_threadpool(-1, threads)",
}


def prepare(request: Request, stage: Stage) -> Made:
    """Imports, tunes and builds the model."""
    threads = max(request.threads)
    os.environ["TVM_NUM_THREADS"] = str(threads)  # read when the first candidate runs
    import tvm
    from tvm import relax
    from tvm.relax.frontend.torch import from_exported_program
    from tvm.s_tir import meta_schedule as ms

    from qcompiler.driver.peers import tvm_light

    tvm_light.initialize()
    target = tvm.target.Target(
        {"kind": "llvm", "mcpu": tvm.target.codegen.llvm_get_system_cpu(), "num-cores": threads}
    )
    work = request.folder / "tuning"
    program = request.load()
    with stage("import"):
        module = from_exported_program(program)
    with target:
        module = tvm.transform.Sequential(
            [
                relax.transform.DecomposeOpsForInference(),
                relax.transform.CanonicalizeBindings(),
                relax.get_pipeline("zero"),
                relax.transform.AttachAttrLayoutFreeBuffers(),
            ]
        )(module)
        trials = request.options.tvm_trials
        with stage("tune"):
            tasks = len(ms.relax_integration.extract_tasks(module, target))
            left = trials - _records(work)  # an interrupted search goes on
            database = ms.relax_integration.tune_relax(
                module,
                {},
                target,
                str(work),
                max_trials_global=max(0, left),
                # The first round over the kernels takes this many of each: more would leave some without any.
                num_trials_per_iter=max(1, min(64, trials // tasks)),
                seed=0,
                builder=ms.builder.LocalBuilder(
                    timeout_sec=BUILD_SECONDS, initializer=tvm_light.initialize, f_build=tvm_light.build
                ),
                runner=ms.runner.LocalRunner(timeout_sec=BUILD_SECONDS, initializer=tvm_light.initialize),
            )
        path = request.folder / "model.so"
        with stage("compile"), database, tvm.transform.PassContext(opt_level=3):
            module = tvm.transform.Sequential(
                [
                    relax.transform.MetaScheduleApplyDatabase(),
                    relax.transform.SplitLayoutRewritePreproc(),
                    relax.transform.LiftTransformParams(),
                    relax.transform.FoldConstant(),
                ]
            )(module)
            tvm.compile(module, target=target).export_library(str(path))
    return request.for_all_threads(path, size_of(path))


def _records(work: Path) -> int:
    """Trials that the search's log has."""
    log = work / "database_tuning_record.json"
    return len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0


PEER = Peer(
    "tvm",
    "float32",
    ("tvm", "xgboost"),
    prepare,
    "tvm_stock:open_session",
    SETTINGS,
    distribution="apache-tvm",
    chosen=lambda options: {"trials": str(options.tvm_trials)},
)
