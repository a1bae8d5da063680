"""Sources of the C runtime by themselves, under the checks of addresses and undefined behaviour."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tvm_ffi.libinfo
from c_programs import compiler

from qcompiler.driver.c_runtime import SOURCE

HERE = Path(__file__).parent / "c"

QC_ERROR_BUNDLE = 2
"""The status of ``qc_runtime.h`` for a damaged bundle."""


def build_test(source: str, folder: Path, *extra: str) -> Path:
    """A program of this folder, with the checks of addresses and undefined behaviour that the compiler has."""
    program = folder / source.removesuffix(".c")
    includes = [SOURCE / "src", SOURCE / "include", *tvm_ffi.libinfo.include_paths()]
    command = [
        *(compiler("cc"), "-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-Wall", "-Wextra", "-Werror"),
        *("-fsanitize=address,undefined", "-fno-sanitize-recover=all", '-DQC_VERSION="0"'),
        *(f"-I{path}" for path in includes),
        *(str(HERE / source), *(str(SOURCE / "src" / name) for name in extra), "-o", str(program)),
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if "cannot find" in result.stderr and "asan" in result.stderr:
        pytest.skip("the system compiler has no address sanitizer")
    assert result.returncode == 0, result.stderr
    return program


def test_sha256(tmp_path: Path) -> None:
    program = build_test("sha256_test.c", tmp_path)
    data = np.random.default_rng(0).integers(0, 256, 100_000, np.uint8).tobytes()
    lengths = [*range(200), *range(200, len(data) + 1, 10007)]
    right = [hashlib.sha256(data[:length]).hexdigest() for length in lengths]
    for step in (1, 63, 64, 1000):
        found = subprocess.run([program, str(step)], input=data, capture_output=True, check=True)
        assert found.stdout.decode().split() == right, step


def test_manifests_with_right_digests_and_wrong_lines(small_bundle_path: Path, tmp_path: Path) -> None:
    """Whoever can write to a bundle can make any text with a right digest; it must not break the reader."""
    program = build_test("manifest_test.c", tmp_path, "manifest.c", "files.c", "status.c", "sha256.c")
    lines = (small_bundle_path / "manifest.txt").read_bytes().splitlines(keepends=True)[:-1]
    rng = np.random.default_rng(0)
    pieces = [
        b" ",
        b"%",
        b"%4",
        b"-",
        b",",
        b"\n",
        b"\0",
        b"99999999999999999999",
        b"..",
        b"/",
        b"float128",
        b"\xff",
    ]
    folders = []
    for k in range(300):
        made = list(lines)
        for _ in range(int(rng.integers(1, 4))):
            row = int(rng.integers(1, len(made)))
            at = int(rng.integers(0, len(made[row])))
            kind = int(rng.integers(0, 4))
            if kind == 0:
                made[row] = made[row][:at] + pieces[int(rng.integers(0, len(pieces)))] + made[row][at:]
            elif kind == 1:
                made[row] = made[row][:at] + made[row][at + int(rng.integers(1, 9)) :]
            elif kind == 2:
                made[row] = made[int(rng.integers(1, len(made)))]
            else:
                made[row] = bytes(rng.integers(0, 256, 20, np.uint8)) + b"\n"
        content = b"".join(made)
        folders.append(tmp_path / str(k))
        folders[-1].mkdir()
        digest = hashlib.sha256(content).hexdigest()
        (folders[-1] / "manifest.txt").write_bytes(content + f"sha256 {digest}\n".encode())
    ended = subprocess.run([program, *folders], capture_output=True, text=True, errors="replace", check=False)
    assert ended.returncode == 0, ended.stderr
    answers = ended.stdout.splitlines()
    assert len(answers) == len(folders)
    refused = [answer for answer in answers if answer.startswith(f"{QC_ERROR_BUNDLE} ")]
    assert all(" is not as format 4 has it" in answer or "is damaged" in answer for answer in refused)
    assert len(refused) > 100, "most of these are no manifests"
