"""The C runtime gives the Python runtime's bits, and tells what is wrong in codes and words."""

from __future__ import annotations

import ctypes
import dataclasses
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_bundle
from c_programs import CProgram, compiler

from qcompiler.runtime import Manifest, load

OK, ARGUMENT, BUNDLE, CPU, CONFLICT, INPUT, THREADS = range(7)


class Buffer(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class Info(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_char_p),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("ndim", ctypes.c_size_t),
        ("size", ctypes.c_size_t),
        ("quantized", ctypes.c_int),
        ("scale", ctypes.c_double),
        ("zero_point", ctypes.c_int32),
    )


def buffers(arrays: list[np.ndarray]) -> ctypes.Array[Buffer]:
    return (Buffer * len(arrays))(*(Buffer(a.ctypes.data, a.nbytes) for a in arrays))


class Api:
    """The functions of a bundle's library, in this process."""

    def __init__(self, bundle: Path) -> None:
        self.library = ctypes.CDLL(str(bundle / "lib/libqc_runtime.so"))
        self.library.qc_error.restype = self.library.qc_status_text.restype = ctypes.c_char_p
        self.library.qc_version.restype = ctypes.c_char_p
        for name in ("input", "output"):
            count, info = getattr(self.library, f"qc_{name}_count"), getattr(self.library, f"qc_{name}_info")
            count.argtypes, count.restype = [ctypes.c_void_p], ctypes.c_size_t
            info.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        self.library.qc_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t] * 1 + [
            ctypes.c_void_p,
            ctypes.c_size_t,
        ]

    @property
    def error(self) -> str:
        return str(self.library.qc_error().decode())

    def load(self, bundle: Path) -> ctypes.c_void_p:
        model = ctypes.c_void_p()
        status = self.library.qc_load(str(bundle).encode(), ctypes.byref(model))
        assert status == OK, self.error
        return model

    def run(self, model: ctypes.c_void_p, inputs: list[np.ndarray]) -> list[np.ndarray]:
        outputs = [np.empty(spec.shape, spec.dtype) for spec in small_bundle.manifest().outputs]
        status = self.library.qc_run(model, buffers(inputs), len(inputs), buffers(outputs), len(outputs))
        assert status == OK, self.error
        return outputs


@pytest.fixture(scope="module")
def api(small_bundle_path: Path) -> Api:
    return Api(small_bundle_path)


def in_thread(function: Callable[[], None]) -> None:
    """Runs a function in a new thread, which has a worker pool of its own."""
    faults: list[BaseException] = []

    def work() -> None:
        try:
            function()
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if faults:
        raise faults[0]


def expected(bundle: Path) -> bytes:
    return b"".join(output.tobytes() for output in load(bundle, threads=1).run(*small_bundle.inputs()))


def readme_commands(bundle: Path, heading: str) -> list[str]:
    """The first commands of a section of the bundle's README."""
    section = (bundle / "README.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    lines = [line.strip() for line in section.splitlines() if line.startswith("    ")]
    return lines[:2]


@pytest.mark.parametrize("language", ["C", "C++"])
def test_two_commands_of_the_readme_build_and_run_the_example(
    small_bundle_path: Path, tmp_path: Path, language: str
) -> None:
    build, run = readme_commands(small_bundle_path, language)
    compiler(shlex.split(build)[0])
    program = tmp_path / "program"
    for k, array in enumerate(small_bundle.inputs()):
        array.tofile(tmp_path / f"{k}.bin")
    place = shlex.split(build)[-1]
    for command in (build, f"{run} -o {tmp_path}/out.bin {tmp_path}/0.bin {tmp_path}/1.bin"):
        assert place in command
        subprocess.run(
            command.replace(place, str(program)), shell=True, cwd=small_bundle_path, check=True, timeout=60
        )
    assert (tmp_path / "out.bin").read_bytes() == expected(small_bundle_path)


def test_pkg_config_gives_the_options(small_bundle_path: Path) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("needs pkg-config")
    result = subprocess.run(
        [
            "pkg-config",
            "--cflags",
            "--libs",
            small_bundle_path / "lib/pkgconfig/qc_runtime.pc",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    options = result.stdout.split()
    paths = {str(Path(option[2:]).resolve()) for option in options if option[:2] in ("-I", "-L")}
    assert paths == {str(small_bundle_path / "include"), str(small_bundle_path / "lib")}
    assert "-lqc_runtime" in options


def test_bundle_may_be_moved_and_the_current_folder_is_free(
    small_bundle_path: Path, c_example: CProgram, tmp_path: Path
) -> None:
    copy = shutil.copytree(small_bundle_path, tmp_path / "a place" / "with spaces")
    assert c_example.outputs(copy, tmp_path) == expected(small_bundle_path)


def test_version_and_texts(api: Api) -> None:
    from qcompiler import __version__

    assert api.library.qc_version().decode() == __version__
    texts = [api.library.qc_status_text(code).decode() for code in range(9)]
    assert len(set(texts)) == 9
    assert api.library.qc_status_text(99).decode() == "unknown status"


def test_tensors(api: Api, small_bundle_path: Path) -> None:
    model = api.load(small_bundle_path)
    manifest = small_bundle.manifest()
    for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        assert getattr(api.library, f"qc_{kind}_count")(model) == len(specs)
        for index, spec in enumerate(specs):
            info = Info()
            assert getattr(api.library, f"qc_{kind}_info")(model, index, ctypes.byref(info)) == OK
            assert info.name.decode() == spec.name
            assert info.dtype.decode() == spec.dtype
            assert tuple(info.shape[: info.ndim]) == spec.shape
            assert info.size == np.empty(spec.shape, spec.dtype).nbytes
            assert (info.scale, info.zero_point) == (
                (spec.scale, spec.zero_point) if info.quantized else (0, 0)
            )
            assert info.quantized == (spec.scale is not None)
        assert getattr(api.library, f"qc_{kind}_info")(model, len(specs), ctypes.byref(info)) == ARGUMENT
        assert api.error == f"qc_{kind}_info: index is {len(specs)}; the model has {len(specs)} {kind}s"
        assert getattr(api.library, f"qc_{kind}_info")(model, 0, None) == ARGUMENT
        assert getattr(api.library, f"qc_{kind}_info")(None, 0, ctypes.byref(info)) == ARGUMENT
    api.library.qc_free(model)


def test_null_pointers(api: Api, small_bundle_path: Path) -> None:
    library, model = api.library, ctypes.c_void_p()
    assert library.qc_load(None, ctypes.byref(model)) == ARGUMENT
    assert library.qc_load(str(small_bundle_path).encode(), None) == ARGUMENT
    assert library.qc_run(None, None, 0, None, 0) == ARGUMENT
    assert library.qc_set_threads(None, 1) == ARGUMENT
    assert library.qc_input_count(None) == library.qc_output_count(None) == library.qc_threads(None) == 0
    library.qc_free(None)
    assert model.value is None


def test_run_with_aligned_and_other_addresses(api: Api, small_bundle_path: Path) -> None:
    model = api.load(small_bundle_path)
    right = expected(small_bundle_path)

    def work() -> None:
        for shift in (0, 4):
            inputs = []
            for array in small_bundle.inputs():
                memory = np.zeros(array.nbytes + 128, np.uint8)
                start = -memory.ctypes.data % 64 + shift
                inputs.append(memory[start : start + array.nbytes].view(np.float32))
                inputs[-1][:] = array.ravel()
            assert b"".join(o.tobytes() for o in api.run(model, inputs)) == right

    in_thread(work)
    api.library.qc_free(model)


def test_wrong_buffers(api: Api, small_bundle_path: Path) -> None:
    model = api.load(small_bundle_path)
    x, b = small_bundle.inputs()
    outputs = [np.empty(spec.shape, spec.dtype) for spec in small_bundle.manifest().outputs]
    small = [np.empty(3, np.float32), *outputs[1:]]
    nothing = (Buffer * 2)(Buffer(None, x.nbytes), Buffer(b.ctypes.data, b.nbytes))
    for arguments, message in (
        ((buffers([x]), 1, buffers(outputs), 5), "got 1 inputs; the model has 2"),
        ((buffers([x, b]), 2, buffers(outputs), 4), "got 4 outputs; the model has 5"),
        ((buffers([b, x]), 2, buffers(outputs), 5), "input 0 (x) has 256 bytes; expected 512"),
        ((buffers([x, b]), 2, buffers(small), 5), "output 0 (y) has 12 bytes; expected 1024"),
        ((nothing, 2, buffers(outputs), 5), "input 0 (x) is NULL"),
        ((None, 2, buffers(outputs), 5), "input 0 (x) is NULL"),
    ):
        assert api.library.qc_run(model, *arguments) == INPUT
        assert api.error == f"qc_run: {message}"
    api.library.qc_free(model)


def test_threads(api: Api, small_bundle_path: Path) -> None:
    model = api.load(small_bundle_path)
    right = expected(small_bundle_path)
    default = api.library.qc_threads(model)
    assert default == load(small_bundle_path).threads
    for wrong in (-1, 10**6):
        assert api.library.qc_set_threads(model, wrong) == ARGUMENT
        assert f"threads is {wrong}; this thread may use" in api.error
        assert api.library.qc_threads(model) == default

    def work() -> None:
        for count in (1, default, 1):
            assert api.library.qc_set_threads(model, count) == OK
            assert b"".join(o.tobytes() for o in api.run(model, list(small_bundle.inputs()))) == right

    in_thread(work)
    assert api.library.qc_set_threads(model, 0) == OK
    assert api.library.qc_threads(model) == default
    api.library.qc_free(model)


def test_many_callers_of_two_models(api: Api, small_bundle_path: Path, other_small_bundle_path: Path) -> None:
    models = [api.load(path) for path in (small_bundle_path, other_small_bundle_path)]
    faults: list[BaseException] = []

    def work(caller: int) -> None:
        try:
            for round in range(10):
                seed = (caller + round) % 2
                inputs = small_bundle.inputs(caller + 1)
                outputs = api.run(models[seed], list(inputs))
                for output, right in zip(outputs, small_bundle.expected(*inputs, seed), strict=True):
                    np.testing.assert_allclose(output, right, rtol=1e-5, atol=1e-5)
        except BaseException as fault:
            faults.append(fault)

    callers = [threading.Thread(target=work, args=(caller,)) for caller in range(6)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not faults, faults
    for model in models:
        api.library.qc_free(model)


def test_each_thread_has_its_own_error(api: Api) -> None:
    api.library.qc_set_threads(None, 1)
    mine = api.error

    def work() -> None:
        assert api.error == ""
        api.library.qc_load(b"/none", ctypes.byref(ctypes.c_void_p()))
        assert "/none" in api.error

    in_thread(work)
    assert api.error == mine


def test_a_bundle_that_was_replaced_is_loaded_anew(
    api: Api, small_bundle_path: Path, other_small_bundle_path: Path, tmp_path: Path
) -> None:
    place = shutil.copytree(small_bundle_path, tmp_path / "bundle")
    first = api.load(place)
    place.rename(tmp_path / "old")
    shutil.copytree(other_small_bundle_path, place)
    second = api.load(place)

    def work() -> None:
        for model, path in ((first, small_bundle_path), (second, other_small_bundle_path)):
            assert b"".join(o.tobytes() for o in api.run(model, list(small_bundle.inputs()))) == expected(
                path
            )

    in_thread(work)
    api.library.qc_free(first)
    api.library.qc_free(second)


def test_another_version_of_the_runtime_in_the_process(
    api: Api, small_bundle_path: Path, tmp_path: Path
) -> None:
    api.library.qc_free(api.load(small_bundle_path))
    copy = shutil.copytree(small_bundle_path, tmp_path / "bundle")
    with (copy / "lib/libtvm_runtime.so").open("ab") as file:
        file.write(b"\0")
    small_bundle.rewrite(copy, lambda manifest: manifest, rehash=True)
    assert api.library.qc_load(str(copy).encode(), ctypes.byref(ctypes.c_void_p())) == CONFLICT
    assert "made with another lib/libtvm_runtime.so" in api.error


def test_library_that_is_none(api: Api, small_bundle_path: Path, c_example: CProgram, tmp_path: Path) -> None:
    copy = shutil.copytree(small_bundle_path, tmp_path / "bundle")
    (copy / "model.so").write_bytes(b"no library")
    small_bundle.rewrite(copy, lambda manifest: manifest, rehash=True)
    ended = c_example.run(copy)
    assert ended.status == 1
    assert "TVM's runtime failed: loading model.so failed" in ended.err
    assert "file too short" in ended.err


def test_outputs_that_the_manifest_does_not_know(
    small_bundle_path: Path, c_example: CProgram, tmp_path: Path
) -> None:
    def change(manifest: Manifest) -> Manifest:
        wrong = dataclasses.replace(manifest.outputs[0], shape=(64, 4))
        return dataclasses.replace(manifest, outputs=(wrong, *manifest.outputs[1:]))

    copy = shutil.copytree(small_bundle_path, tmp_path / "bundle")
    small_bundle.rewrite(copy, change)
    ended = c_example.run(copy)
    assert (ended.status, "output y of the library is not as the manifest says" in ended.err) == (1, True)
