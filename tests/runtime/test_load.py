"""A bundle is checked before anything of it is executed, and its load brings in no compiler."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import small_bundle

from qcompiler.errors import BundleError, ConfigError, CpuError
from qcompiler.runtime import Manifest, load, read_manifest, verify
from qcompiler.runtime import bundle as bundle_module
from qcompiler.runtime import library as library_module

TESTS = Path(small_bundle.__file__).parent


@pytest.fixture
def bundle(small_bundle_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle_path, tmp_path / "copy")


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the library was loaded before the checks were done")

    monkeypatch.setattr(bundle_module, "load_library", refuse)


def test_verify_returns_the_manifest(small_bundle_path: Path) -> None:
    manifest = verify(small_bundle_path)
    assert set(manifest.files) >= {
        "NOTES.md", "README.md", "constants.bin", "examples/run.c", "include/qc_runtime.h", "lib/libqc_runtime.so",
        "lib/libtvm_ffi.so", "lib/libtvm_runtime.so", "licenses/apache-tvm/LICENSE", "model.so",
    }  # fmt: skip
    assert dataclasses.replace(manifest, files={}, constants=()) == Manifest.from_json(
        small_bundle.manifest().to_json()
    )


@pytest.mark.usefixtures("no_loading")
class TestRefusal:
    def test_missing_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="does not exist"):
            load(tmp_path / "nothing")

    def test_file_in_place_of_a_bundle(self, bundle: Path) -> None:
        with pytest.raises(BundleError, match="is a file; give the folder"):
            load(bundle / "model.so")

    def test_folder_without_manifest(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match=r"no readable manifest\.json"):
            load(tmp_path)

    def test_manifest_that_is_no_text(self, bundle: Path) -> None:
        (bundle / "manifest.json").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(BundleError, match=r"no readable manifest\.json"):
            load(bundle)

    def test_other_format(self, bundle: Path) -> None:
        text = (bundle / "manifest.json").read_text()
        (bundle / "manifest.json").write_text(text.replace('"format_version": 4', '"format_version": 5'))
        with pytest.raises(BundleError, match="has format 5; this qcompiler reads format 4"):
            load(bundle)

    @pytest.mark.parametrize(
        "name", ["README.md", "model.so", "constants.bin", "manifest.txt", "lib/libtvm_runtime.so"]
    )
    def test_missing_file(self, bundle: Path, name: str) -> None:
        (bundle / name).unlink()
        with pytest.raises(BundleError, match=f"lacks {name}"):
            load(bundle)

    def test_required_file_that_the_manifest_forgot(self, bundle: Path) -> None:
        (bundle / "model.so").unlink()
        small_bundle.rewrite(
            bundle,
            lambda m: dataclasses.replace(m, files={k: v for k, v in m.files.items() if k != "model.so"}),
        )
        with pytest.raises(BundleError, match=r"lacks model\.so"):
            load(bundle)

    @pytest.mark.parametrize("name", ["stray.txt", "lib/libextra.so"])
    def test_extra_file(self, bundle: Path, name: str) -> None:
        (bundle / name).write_text("x")
        with pytest.raises(BundleError, match=f"does not list: {name}"):
            load(bundle)

    def test_cpu_without_a_feature(self, bundle: Path) -> None:
        target = {"name": "x86-future", "family": "x86", "required_features": ["avx4096"]}
        small_bundle.rewrite(bundle, lambda m: dataclasses.replace(m, target=target))
        with pytest.raises(CpuError, match=r"x86-future needs CPU features that .* lacks: avx4096"):
            load(bundle)

    def test_too_many_threads(self, bundle: Path) -> None:
        with pytest.raises(ConfigError, match="threads is 1000000"):
            load(bundle, threads=10**6)


@pytest.mark.parametrize(
    ("package", "message"), [("tvm", r"apache-tvm 0\.1, and this process runs"), ("tvm_ffi", "pip install")]
)
def test_other_version_of_the_runtime(bundle: Path, package: str, message: str) -> None:
    small_bundle.rewrite(
        bundle,
        lambda m: dataclasses.replace(m, versions=dataclasses.replace(m.versions, **{package: "0.1"})),
    )
    with pytest.raises(BundleError, match=message):
        load(bundle)


PRELUDE = """
import sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from qcompiler.runtime import load

def run():
    model = load(sys.argv[1])
    x, b = np.full((4, 32), 0.5, np.float32), np.zeros(64, np.float32)
    y, z, same, constant, twin = model.run(x, b)
    model.profile(x, b)
    assert (same == x).all() and (z == np.maximum(y, 0)).all() and list(constant) == [0, 1, 2, 3, 4, 5]

def mapped():
    with open("/proc/self/maps") as maps:
        return {line.split()[-1] for line in maps if ".so" in line}
"""


def run(code: str, bundle: Path) -> str:
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(bundle), str(TESTS)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_neither_torch_nor_the_compiler_is_loaded(small_bundle_path: Path) -> None:
    run(
        """
        run()
        names = [m for m in ("torch", "tvm", "torchao", "qcompiler.operators") if m in sys.modules]
        assert not names, names
        libraries = [path for path in mapped() if "tvm" in path]
        assert not [path for path in libraries if "compiler" in path], libraries
        assert len([path for path in libraries if path.endswith("/libtvm_ffi.so")]) == 1, libraries
        assert len([path for path in libraries if path.endswith("/libtvm_runtime.so")]) == 1, libraries
        import torch  # hiding it during the load must not be for good
        """,
        small_bundle_path,
    )


def test_import_is_light(small_bundle_path: Path) -> None:
    run('assert not {"torch", "tvm", "tvm_ffi"} & sys.modules.keys()', small_bundle_path)


@pytest.mark.parametrize("order", ["run(); import tvm; run()", "import tvm; run()"], ids=["before", "after"])
def test_bundle_and_compiler_share_a_process_in_either_order(small_bundle_path: Path, order: str) -> None:
    run(
        f"""
        {order}
        runtimes = [path for path in mapped() if path.endswith("/libtvm_runtime.so")]
        assert len(runtimes) == 1, runtimes
        import small_bundle, pathlib, tempfile
        with tempfile.TemporaryDirectory() as folder:
            small_bundle.library(pathlib.Path(folder) / "again.so")
        """,
        small_bundle_path,
    )


def test_without_an_installed_tvm_the_bundles_runtime_is_used(
    small_bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "lib/libtvm_runtime.so"
    own = small_bundle_path / name
    manifest = read_manifest(small_bundle_path)
    assert library_module._runtime_path(small_bundle_path, manifest, name) != own
    monkeypatch.setattr(library_module.importlib.util, "find_spec", lambda _: None)
    assert library_module._runtime_path(small_bundle_path, manifest, name) == own


def test_the_bundles_own_runtime_runs_it(small_bundle_path: Path) -> None:
    run(
        """
        import importlib.util
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "tvm" else found(name, *rest)
        run()
        (runtime,) = [path for path in mapped() if path.endswith("/libtvm_runtime.so")]
        assert runtime.startswith(sys.argv[1]), runtime
        """,
        small_bundle_path,
    )
