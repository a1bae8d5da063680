"""From the command line to machines without the compiler: signatures, packages, and the C program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from c_programs import CProgram
from command_line import Command, Compiled
from signing import Keys, make_keys

from qcompiler.runtime import load


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path)


@pytest.fixture
def signed(qcompile: Command, compiled: Compiled, keys: Keys, tmp_path: Path) -> Path:
    copy = shutil.copytree(compiled.bundle, tmp_path / "signed")
    outcome = qcompile("sign", copy, "--key", keys.private)
    assert outcome.status == 0, outcome.err
    assert str(copy / "manifest.sig") in outcome.out
    return copy


def test_commands_take_a_signed_bundle(
    qcompile: Command, compiled: Compiled, signed: Path, keys: Keys
) -> None:
    for command in (
        ("run", signed, "--input", compiled.data),
        ("verify", signed, "--data", compiled.data, "--limit", 1),
        ("evaluate", signed, "--data", compiled.data),
        ("bench", signed, "--rounds", 1),
        ("profile", signed, "--repeat", 1, "--peak", 100),
        ("inspect", signed),
    ):
        arguments = (*command, "--require-signature", keys.public)
        if command[0] != "inspect":
            arguments += ("--threads", 1)
        outcome = qcompile(*arguments)
        assert outcome.status == 0, outcome.err
        arguments = (command[0], compiled.bundle, *arguments[2:])
        refused = qcompile(*arguments)
        assert refused.status == 1
        assert refused.err.startswith(f"error: bundle {compiled.bundle} is not signed, and a signature is")
    assert "signed" in qcompile("inspect", signed).out


def test_sign_as_json(qcompile: Command, signed: Path, keys: Keys) -> None:
    outcome = qcompile("sign", signed, "--key", keys.private, "--json")
    assert json.loads(outcome.out) == {"signature": str(signed / "manifest.sig")}
    wrong = qcompile("sign", signed, "--key", keys.public)
    assert (wrong.status, wrong.err.count("\n")) == (1, 1)
    assert "is no private key in PEM form" in wrong.err


@pytest.mark.parametrize(
    ("format", "name"),
    [
        ("tar", "net-1.0.0-x86_64.tar.gz"),
        ("wheel", "net-1.0.0-py3-none-manylinux_2_28_x86_64.whl"),
        ("deb", "net_1.0.0_amd64.deb"),
    ],
)
def test_export(qcompile: Command, compiled: Compiled, tmp_path: Path, format: str, name: str) -> None:
    arguments = ("export", compiled.bundle, "--format", format, "--output", tmp_path, "--name", "net")
    outcome = qcompile(*arguments)
    assert outcome.status == 0, outcome.err
    assert outcome.out.startswith(f"{tmp_path / name}: ")
    result = json.loads(qcompile(*arguments, "--json").out)
    assert result["path"] == str(tmp_path / name)
    assert result["size"] == (tmp_path / name).stat().st_size
    wrong = qcompile("export", compiled.bundle, "--format", "zip", "--output", tmp_path)
    assert wrong.err == "error: unknown format 'zip'; known: tar, wheel, deb\n"


def test_the_c_program_runs_an_exported_network(
    qcompile: Command, compiled: Compiled, c_example: CProgram, tmp_path: Path
) -> None:
    outcome = qcompile("export", compiled.bundle, "--format", "tar", "--output", tmp_path / "net.tar.gz")
    assert outcome.status == 0, outcome.err
    with tarfile.open(tmp_path / "net.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    image = np.random.default_rng(3).standard_normal((1, 3, 8, 8)).astype(np.float32)
    image.tofile(tmp_path / "image.bin")
    ended = c_example.run(
        tmp_path / "bundle-1.0.0-x86_64", "-o", tmp_path / "out.bin", tmp_path / "image.bin"
    )
    assert ended.status == 0, ended.err
    (right,) = load(compiled.bundle, threads=1).run(image)
    assert (tmp_path / "out.bin").read_bytes() == right.tobytes()


@pytest.mark.slow
def test_compiling_again_gives_the_same_bytes(compiled: Compiled, tmp_path: Path) -> None:
    """In another process, with other hashes of strings, another folder, and another name of the output."""
    subprocess.run(
        [
            *(sys.executable, "-c", "from qcompiler.cli import main; main()", "compile", compiled.model),
            *(
                "--calibration",
                compiled.calibration,
                "--output",
                tmp_path / "other name",
                "--target",
                "x86-avx2",
            ),
        ],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        cwd=tmp_path,
        capture_output=True,
        check=True,
    )
    bundles = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        for folder in (compiled.bundle, tmp_path / "other name")
    ]
    assert bundles[0].keys() == bundles[1].keys()
    assert [name for name in bundles[0] if bundles[0][name] != bundles[1][name]] == []
