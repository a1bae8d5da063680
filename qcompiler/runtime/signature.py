"""Ed25519 signatures of bundles: ``manifest.sig`` holds the 64 bytes of the signature of ``manifest.txt``.

Needs the package ``cryptography``, but only where a signature is made or required.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler.errors import ConfigError, SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

SIGNATURE_NAME = "manifest.sig"
SIGNATURE_BYTES = 64


def check_signature(bundle: Path, signed: bytes, key: Path) -> None:
    """Checks a bundle's signature.

    Args:
        bundle: the bundle's folder.
        signed: the content of its ``manifest.txt``.
        key: the signer's public key, a PEM file.

    Raises:
        SignatureError: there is no signature, or it is another key's or another bundle's.
        ConfigError: ``key`` cannot be read or holds no Ed25519 public key, or ``cryptography`` is not installed.
    """
    public = _public_key(key)
    from cryptography.exceptions import InvalidSignature

    try:
        signature = (bundle / SIGNATURE_NAME).read_bytes()
    except FileNotFoundError as error:
        raise SignatureError(
            f"bundle {bundle} is not signed, and a signature is required; sign it with 'qcompile sign'"
        ) from error
    except OSError as error:
        raise SignatureError(f"bundle {bundle}: {SIGNATURE_NAME} cannot be read: {error}") from error
    try:
        public.verify(signature, signed)
    except InvalidSignature as error:
        raise SignatureError(
            f"bundle {bundle}: {SIGNATURE_NAME} is not the signature of this bundle by the owner of {key}; the bundle "
            "was changed, or signed with another key"
        ) from error


def _public_key(path: Path) -> Ed25519PublicKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ImportError as error:
        raise ConfigError(
            "checking a signature needs the package cryptography; run pip install 'qcompiler[sign]'"
        ) from error
    try:
        key = load_pem_public_key(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"key {path} cannot be read: {error}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(
            f"key {path} is no public key in PEM form: {error}; make one with 'openssl pkey -in PRIVATE.pem -pubout'"
        ) from error
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError(f"key {path} is of another kind than Ed25519; make one with 'openssl genpkey'")
    return key
