"""A signed bundle is loaded by whoever has the key, and by nobody else once a byte has changed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import small_bundle
from c_programs import CProgram
from signing import Keys, make_keys

from qcompiler.driver.sign import sign
from qcompiler.errors import BundleError, ConfigError, SignatureError
from qcompiler.runtime import bundle as bundle_module
from qcompiler.runtime import load, verify


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return make_keys(tmp_path)


@pytest.fixture
def signed(small_bundle_path: Path, keys: Keys, tmp_path: Path) -> Path:
    copy = shutil.copytree(small_bundle_path, tmp_path / "bundle")
    assert sign(copy, keys.private) == copy / "manifest.sig"
    return copy


def test_signed_bundle_is_loaded(signed: Path, keys: Keys) -> None:
    load(signed, require_signature=keys.public)
    load(signed)
    assert [path.name for path in signed.parent.iterdir() if path.name.startswith(".")] == []


def test_signature_is_reproducible_and_replaced(signed: Path, keys: Keys, tmp_path: Path) -> None:
    first = (signed / "manifest.sig").read_bytes()
    sign(signed, keys.private)
    assert (signed / "manifest.sig").read_bytes() == first
    other = make_keys(tmp_path, seed=1)
    sign(signed, other.private)
    verify(signed, require_signature=other.public)


def test_the_c_runtime_takes_a_signed_bundle(signed: Path, c_example: CProgram, tmp_path: Path) -> None:
    assert c_example.outputs(signed, tmp_path)


def test_openssl_verifies_it(signed: Path, keys: Keys) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs the program openssl")
    readme = (signed / "README.md").read_text()
    (line,) = [line.strip() for line in readme.splitlines() if "openssl pkeyutl" in line]
    command = line.replace("KEY.pem", str(keys.public)).split()
    result = subprocess.run(command, cwd=signed, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "Signature Verified Successfully" in result.stdout


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the library was loaded before the checks were done")

    monkeypatch.setattr(bundle_module, "load_library", refuse)


@pytest.mark.usefixtures("no_loading")
class TestRefusal:
    def test_unsigned(self, small_bundle_path: Path, keys: Keys) -> None:
        with pytest.raises(SignatureError, match="is not signed, and a signature is required"):
            load(small_bundle_path, require_signature=keys.public)

    def test_another_key(self, signed: Path, tmp_path: Path) -> None:
        with pytest.raises(SignatureError, match="is not the signature of this bundle by the owner of"):
            load(signed, require_signature=make_keys(tmp_path, seed=1).public)

    def test_every_byte_of_the_signature(self, signed: Path, keys: Keys) -> None:
        content = (signed / "manifest.sig").read_bytes()
        assert len(content) == 64
        for position in range(64):
            flipped = bytearray(content)
            flipped[position] ^= 1
            (signed / "manifest.sig").write_bytes(flipped)
            with pytest.raises(SignatureError, match="is not the signature of this bundle"):
                load(signed, require_signature=keys.public)
        for wrong in (b"", content[:-1], content + b"\0"):
            (signed / "manifest.sig").write_bytes(wrong)
            with pytest.raises(SignatureError, match="is not the signature of this bundle"):
                load(signed, require_signature=keys.public)

    def test_a_forger_who_makes_all_digests_right(self, signed: Path, keys: Keys) -> None:
        with (signed / "model.so").open("ab") as file:
            file.write(b"\0")
        small_bundle.rewrite(signed, lambda manifest: manifest, rehash=True)
        verify(signed)
        with pytest.raises(SignatureError, match="the bundle was changed"):
            load(signed, require_signature=keys.public)

    def test_the_signature_of_another_bundle(
        self, signed: Path, other_small_bundle_path: Path, keys: Keys, tmp_path: Path
    ) -> None:
        other = shutil.copytree(other_small_bundle_path, tmp_path / "other")
        shutil.copy(signed / "manifest.sig", other)
        with pytest.raises(SignatureError, match="is not the signature of this bundle"):
            load(other, require_signature=keys.public)

    def test_a_damaged_file_under_a_right_signature(self, signed: Path, keys: Keys) -> None:
        with (signed / "model.so").open("ab") as file:
            file.write(b"\0")
        with pytest.raises(BundleError, match=r"model\.so is damaged"):
            load(signed, require_signature=keys.public)

    def test_keys_that_are_none(self, signed: Path, keys: Keys, tmp_path: Path) -> None:
        (tmp_path / "text.pem").write_text("text")
        for path, message in (
            (tmp_path / "none.pem", "cannot be read"),
            (tmp_path / "text.pem", "is no public key in PEM form"),
            (keys.private, "is no public key in PEM form"),
            (curve_key(tmp_path).public, "is of another kind than Ed25519"),
        ):
            with pytest.raises(ConfigError, match=message):
                load(signed, require_signature=path)


def curve_key(folder: Path) -> Keys:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    key = generate_private_key(SECP256R1())
    keys = Keys(folder / "ec.pem", folder / "ec-public.pem")
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    keys.private.write_bytes(key.private_bytes(pem, pkcs8, serialization.BestAvailableEncryption(b"secret")))
    keys.public.write_bytes(
        key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return keys


def test_private_keys_that_are_none(small_bundle_path: Path, keys: Keys, tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.pem", "cannot be read"),
        (keys.public, "is no private key in PEM form"),
        (curve_key(tmp_path).private, "has a passphrase"),
    ):
        with pytest.raises(ConfigError, match=message):
            sign(small_bundle_path, path)


def test_a_damaged_bundle_is_not_signed(signed: Path, keys: Keys) -> None:
    (signed / "manifest.sig").unlink()
    (signed / "model.so").write_bytes(b"x")
    with pytest.raises(BundleError, match="damaged"):
        sign(signed, keys.private)
    assert not (signed / "manifest.sig").exists()
