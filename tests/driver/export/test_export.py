"""Exported files hold the bundle as it is, give the same bytes every time, and run without the compiler."""

from __future__ import annotations

import email
import os
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import small_bundle
from c_programs import CProgram
from signing import make_keys

from qcompiler.driver.export import export
from qcompiler.driver.sign import sign
from qcompiler.errors import BundleError, ConfigError
from qcompiler.runtime import load, verify

FORMATS = ("tar", "wheel", "deb")


@pytest.fixture
def bundle(small_bundle_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_bundle_path, tmp_path / "My Model")


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def expected(bundle: Path) -> bytes:
    return b"".join(output.tobytes() for output in load(bundle, threads=1).run(*small_bundle.inputs()))


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_bytes_whatever_the_times_and_modes(bundle: Path, tmp_path: Path, format: str) -> None:
    first = export(bundle, format, tmp_path).path  # type: ignore[arg-type]
    before = first.read_bytes()
    again = shutil.copytree(bundle, tmp_path / "elsewhere" / "my-model")
    for path in again.rglob("*"):
        os.utime(path, (1e9, 1e9))
        path.chmod(0o777)
    assert export(again, format, tmp_path / "elsewhere").path.read_bytes() == before  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_source_date_epoch_is_the_time(
    bundle: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = export(bundle, format, tmp_path).path.read_bytes()  # type: ignore[arg-type]
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    path = export(bundle, format, tmp_path).path  # type: ignore[arg-type]
    assert path.read_bytes() != before
    if format == "tar":
        with tarfile.open(path) as archive:
            assert {member.mtime for member in archive} == {1700000000}
    if format == "wheel":
        with zipfile.ZipFile(path) as archive:
            assert {entry.date_time for entry in archive.infolist()} == {(2023, 11, 14, 22, 13, 20)}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(ConfigError, match="SOURCE_DATE_EPOCH is 'yesterday'; it must be seconds since 1970"):
        export(bundle, format, tmp_path)  # type: ignore[arg-type]


def test_a_tarball_runs(bundle: Path, tmp_path: Path, c_example: CProgram) -> None:
    made = export(bundle, "tar", tmp_path, version="2.1")
    assert made.path.name == "my-model-2.1-x86_64.tar.gz"
    assert made.size == made.path.stat().st_size
    with tarfile.open(made.path) as archive:
        members = archive.getmembers()
        assert [member.name for member in members] == sorted(member.name for member in members)
        assert {(member.uid, member.gid, member.uname, member.gname) for member in members} == {
            (0, 0, "root", "root")
        }
        archive.extractall(tmp_path / "clean", filter="data")
    unpacked = tmp_path / "clean" / "my-model-2.1-x86_64"
    assert contents(unpacked) == contents(bundle)
    assert c_example.outputs(unpacked, tmp_path) == expected(bundle)


def test_a_wheel_is_installed_by_pip_and_needs_numpy_only(bundle: Path, tmp_path: Path) -> None:
    made = export(bundle, "wheel", tmp_path)
    assert made.path.name == "my_model-1.0.0-py3-none-manylinux_2_28_x86_64.whl"
    site = tmp_path / "site"
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check"]
    subprocess.run([sys.executable, *pip, "--target", site, made.path], check=True)
    assert contents(site / "my_model" / "bundle") == contents(bundle)
    (metadata,) = site.glob("*.dist-info/METADATA")
    fields = email.message_from_string(metadata.read_text())
    assert (fields["Name"], fields["Version"], fields.get_all("Requires-Dist")) == (
        "my-model",
        "1.0.0",
        ["numpy"],
    )
    code = """
        import sys, threading
        sys.path.insert(0, sys.argv[1])
        import numpy as np
        import my_model

        model = my_model.load(threads=1)
        assert model.threads == 1
        assert [t.name for t in model.inputs] == ["x", "b"]
        assert model.inputs[0] == my_model.Tensor("x", (4, 32), "float32", 0.5, 128), model.inputs
        assert model.outputs[3] == my_model.Tensor("constant", (6,), "float32", None, None)
        x, b = np.load(sys.argv[2]).values()
        outputs = model.run(x, b)
        np.savez(sys.argv[3], *outputs)
        shifted = np.zeros(x.size + 1, np.float32)[1:].reshape(x.shape)
        shifted[:] = x
        again = model.run(shifted, np.repeat(b, 2)[::2])
        assert all((a == o).all() for a, o in zip(again, outputs))
        for wrong in ((x,), (x, b[1:]), (x.astype(np.float64), b)):
            try:
                model.run(*wrong)
            except my_model.Error as error:
                assert "expected float32" in str(error) or "got 1 inputs" in str(error)
            else:
                raise AssertionError(wrong)
        for threads in (0, 10**6):
            try:
                my_model.load(threads=threads)
            except my_model.Error as error:
                assert f"threads is {threads}" in str(error)
            else:
                raise AssertionError(threads)
        foreign = {"torch", "tvm", "tvm_ffi", "qcompiler"} & sys.modules.keys()
        assert not foreign, foreign
        with open("/proc/self/maps") as maps:
            loaded = {line.split()[-1] for line in maps if "tvm" in line}
        assert loaded and all(path.startswith(sys.argv[1]) for path in loaded), loaded
    """
    x, b = small_bundle.inputs()
    np.savez(tmp_path / "in.npz", x=x, b=b)
    run_isolated(code, site, tmp_path / "in.npz", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as archive:
        assert b"".join(archive[name].tobytes() for name in archive.files) == expected(bundle)

    library = site / "my_model" / "bundle" / "lib" / "libqc_runtime.so"
    library.write_bytes(library.read_bytes() + b"\0")
    code = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import my_model
        try:
            my_model.load()
        except my_model.Error as error:
            assert "libqc_runtime.so is damaged" in str(error), error
        else:
            raise AssertionError("loaded")
        assert "libqc_runtime" not in open("/proc/self/maps").read()
    """
    run_isolated(code, site)


def run_isolated(code: str, *arguments: Path) -> None:
    """Runs Python without the paths of this environment's variables."""
    result = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


def test_a_wheel_lists_every_file_with_its_digest(bundle: Path, tmp_path: Path) -> None:
    import base64
    import hashlib

    with zipfile.ZipFile(export(bundle, "wheel", tmp_path).path) as archive:
        (record,) = [name for name in archive.namelist() if name.endswith("/RECORD")]
        rows = dict(line.split(",", 1) for line in archive.read(record).decode().splitlines())
        assert rows.keys() == set(archive.namelist())
        for name, row in rows.items():
            if name != record:
                digest = (
                    base64.urlsafe_b64encode(hashlib.sha256(archive.read(name)).digest()).decode().rstrip("=")
                )
                assert row == f"sha256={digest},{archive.getinfo(name).file_size}"


def unpack_deb(path: Path, folder: Path) -> None:
    """Unpacks a package's files, reading its ``ar`` archive by hand."""
    data = path.read_bytes()
    assert data.startswith(b"!<arch>\n")
    position, members = 8, {}
    while position < len(data):
        header = data[position : position + 60]
        assert header[58:] == b"`\n"
        size = int(header[48:58])
        members[header[:16].decode().strip()] = data[position + 60 : position + 60 + size]
        position += 60 + size + size % 2
    assert list(members) == ["debian-binary", "control.tar.gz", "data.tar.gz"]
    assert members["debian-binary"] == b"2.0\n"
    for name in ("control", "data"):
        (folder / f"{name}.tar.gz").write_bytes(members[f"{name}.tar.gz"])
        with tarfile.open(folder / f"{name}.tar.gz") as archive:
            archive.extractall(folder / name, filter="data")


def test_a_debian_package_runs(bundle: Path, tmp_path: Path, c_example: CProgram) -> None:
    import hashlib

    made = export(bundle, "deb", tmp_path, name="net", version="3.0", maintainer="A B <a@b.example>")
    assert made.path.name == "net_3.0_amd64.deb"
    unpack_deb(made.path, tmp_path)
    root = tmp_path / "data"
    assert contents(root / "usr/lib/net") == contents(bundle)
    control = (tmp_path / "control" / "control").read_text()
    for line in ("Package: net", "Version: 3.0", "Architecture: amd64", "Maintainer: A B <a@b.example>"):
        assert f"{line}\n" in control
    sums = dict(
        reversed(line.split("  ")) for line in (tmp_path / "control/md5sums").read_text().splitlines()
    )
    assert sums == {name: hashlib.md5(data).hexdigest() for name, data in contents(root).items()}
    assert c_example.outputs(root / "usr/lib/net", tmp_path) == expected(bundle)


def test_dpkg_reads_the_package(bundle: Path, tmp_path: Path) -> None:
    if shutil.which("dpkg-deb") is None:
        pytest.skip("needs dpkg-deb")
    path = export(bundle, "deb", tmp_path).path
    shown = subprocess.run(["dpkg-deb", "--info", path], capture_output=True, text=True, check=True).stdout
    assert "Package: my-model" in shown
    subprocess.run(["dpkg-deb", "--extract", path, tmp_path / "root"], check=True)
    assert contents(tmp_path / "root/usr/lib/my-model") == contents(bundle)
    listed = subprocess.run(
        ["dpkg-deb", "--contents", path], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1] for line in listed.splitlines()]
    assert names[:3] == ["./usr/", "./usr/lib/", "./usr/lib/my-model/"]


def test_a_signature_goes_along(bundle: Path, tmp_path: Path) -> None:
    keys = make_keys(tmp_path)
    sign(bundle, keys.private)
    with tarfile.open(export(bundle, "tar", tmp_path).path) as archive:
        archive.extractall(tmp_path / "clean", filter="data")
    verify(tmp_path / "clean" / "my-model-1.0.0-x86_64", require_signature=keys.public)


def test_a_folder_that_is_not_there_is_made(bundle: Path, tmp_path: Path) -> None:
    made = export(bundle, "wheel", tmp_path / "dist", name="net")
    assert made.path.parent == tmp_path / "dist"
    assert made.path.name.startswith("net-1.0.0-")


def test_output_may_be_a_file(bundle: Path, tmp_path: Path) -> None:
    assert export(bundle, "tar", tmp_path / "new" / "x.tgz").path == tmp_path / "new" / "x.tgz"
    with pytest.raises(ConfigError, match=r"a wheel must be called my_model-1\.0\.0-py3-none-manylinux"):
        export(bundle, "wheel", tmp_path / "x.whl")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "rpm"}, "unknown format 'rpm'; known: tar, wheel, deb"),
        ({"name": "My Model"}, "package name is 'My Model'; give --name with small letters"),
        ({"name": "x"}, "package name is 'x'"),
        ({"version": "1.0-beta"}, "version is '1.0-beta'; give numbers with points"),
        ({"maintainer": "a\nInjected: yes"}, "maintainer is"),
    ],
)
def test_refusals(bundle: Path, tmp_path: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export(bundle, **{"format": "tar", "output": tmp_path, **options})  # type: ignore[arg-type]


def test_a_damaged_bundle_is_not_exported(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.so").write_bytes(b"x")
    with pytest.raises(BundleError, match="damaged"):
        export(bundle, "tar", tmp_path)
    assert list(tmp_path.glob("*.tar.gz")) == []


def test_failure_to_write_is_told(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BundleError, match="cannot be written"):
        export(bundle, "tar", tmp_path / "file" / "x.tar.gz")
