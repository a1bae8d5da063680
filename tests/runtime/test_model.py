"""A loaded model gives right answers, also to several threads, and says what it measures."""

from __future__ import annotations

import gc
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_bundle
import torch

from qcompiler.errors import BundleError, ConfigError, InputError
from qcompiler.runtime import Model, TensorSpec, load

needs_two_cpus = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two CPUs")


@pytest.fixture(scope="module")
def model(small_bundle_path: Path) -> Model:
    return load(small_bundle_path, threads=1)


def check(outputs: tuple[Any, ...], inputs: tuple[Any, ...], seed: int = 0) -> None:
    expected = small_bundle.expected(*inputs, seed)
    assert len(outputs) == len(expected)
    for output, right in zip(outputs, expected, strict=True):
        np.testing.assert_allclose(output, right, rtol=1e-5, atol=1e-5)


def test_run_by_position_by_name_and_by_call(model: Model) -> None:
    x, b = small_bundle.inputs()
    check(model.run(x, b), (x, b))
    check(model.run({"b": b, "x": x}), (x, b))
    check(model(x, b), (x, b))


def test_torch_tensors_in_and_out(model: Model) -> None:
    x, b = small_bundle.inputs()
    outputs = model.run(torch.from_numpy(x.copy()), torch.from_numpy(b.copy()))
    check(tuple(torch.from_dlpack(output).numpy() for output in outputs), (x, b))


def test_properties(model: Model) -> None:
    assert [spec.name for spec in model.inputs] == ["x", "b"]
    assert [spec.name for spec in model.outputs] == ["y", "z", "same", "constant", "twin"]
    assert model.threads == 1
    assert model.manifest.target_name == "x86-avx2"
    assert "x: float32[4, 32]" in repr(model)


def test_outputs_are_the_callers_to_change(model: Model) -> None:
    """No input passed through, constant of the library, or other output may be reached through one."""
    x, b = small_bundle.inputs()
    for _ in range(2):
        tensor = torch.from_numpy(x).clone()  # aligned, so it is read in place
        outputs = model.run(tensor, b)
        for number, output in enumerate(outputs):
            output[...] = number
        assert [output.max() for output in outputs] == [0, 1, 2, 3, 4]
        np.testing.assert_array_equal(tensor.numpy(), x)
    check(model.run(x, b), (x, b))


def test_outputs_outlive_the_model_and_later_runs(small_bundle_path: Path) -> None:
    model = load(small_bundle_path, threads=1)
    x, b = small_bundle.inputs()
    first = model.run(x, b)
    model.run(*small_bundle.inputs(seed=5))
    del model
    gc.collect()
    check(first, (x, b))


def test_wrong_inputs_are_refused(model: Model) -> None:
    x, b = small_bundle.inputs()
    for call in (model.run, model.time, model.profile):
        with pytest.raises(InputError, match=r"input 'b' has shape \[63\]; expected \[64\]"):
            call(x, b[:63])


@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=needs_two_cpus)])
def test_several_threads_call_one_model(small_bundle_path: Path, threads: int) -> None:
    model = load(small_bundle_path, threads=threads)
    barrier = threading.Barrier(4)
    faults: list[BaseException] = []

    def work(seed: int) -> None:
        inputs = small_bundle.inputs(seed)
        barrier.wait()
        try:
            for _ in range(50):
                check(model.run(*inputs), inputs)
        except BaseException as fault:
            faults.append(fault)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not faults


@needs_two_cpus
def test_models_with_other_numbers_of_threads_share_a_process(small_bundle_path: Path) -> None:
    inputs = small_bundle.inputs()
    models = [load(small_bundle_path, threads=threads) for threads in (2, 1, 2)]
    for model in models * 2:
        check(model.run(*inputs), inputs)


def test_model_lives_on_when_another_of_its_bundle_is_dropped(small_bundle_path: Path) -> None:
    kept, dropped = (load(small_bundle_path, threads=1) for _ in range(2))
    inputs = small_bundle.inputs()
    dropped.run(*inputs)
    del dropped
    gc.collect()
    check(kept.run(*inputs), inputs)


def test_replaced_bundle_is_loaded_anew(tmp_path: Path) -> None:
    inputs = small_bundle.inputs()
    old = load(small_bundle.write(tmp_path / "bundle", tmp_path, seed=0), threads=1)
    new = load(small_bundle.write(tmp_path / "bundle", tmp_path, seed=3), threads=1)
    check(new.run(*inputs), inputs, seed=3)
    check(old.run(*inputs), inputs, seed=0)


def test_library_that_differs_from_its_manifest_is_refused(tmp_path: Path) -> None:
    outputs = (TensorSpec("y", (4, 64), "float32"),)
    model = load(small_bundle.write(tmp_path / "bundle", tmp_path, outputs=outputs), threads=1)
    with pytest.raises(
        BundleError, match=r"returns float32\[4, 64\], float32\[4, 64\], .* says float32\[4, 64\]"
    ):
        model.run(*small_bundle.inputs())


def test_time_gives_one_mean_a_repetition(model: Model) -> None:
    seconds = model.time(*small_bundle.inputs(), number=2, repeat=5)
    assert len(seconds) == 5
    assert all(s > 0 for s in seconds)


def test_profile_names_the_kernels_in_order(model: Model) -> None:
    profile = model.profile(*small_bundle.inputs(), repeat=2)
    assert [name for name, _ in profile] == ["relu", "matmul", "add", "relu1"]
    assert all(seconds > 0 for _, seconds in profile)


def test_counts_below_one_are_refused(model: Model) -> None:
    inputs = small_bundle.inputs()
    with pytest.raises(ConfigError, match="number is 0"):
        model.time(*inputs, number=0)
    with pytest.raises(ConfigError, match="repeat is 0"):
        model.profile(*inputs, repeat=0)
