"""Signs a bundle with an Ed25519 key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from qcompiler import runtime
from qcompiler.errors import BundleError, ConfigError
from qcompiler.runtime.manifest_text import MANIFEST_TEXT_NAME
from qcompiler.runtime.signature import SIGNATURE_NAME

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def sign(bundle: Path, key: Path) -> Path:
    """Writes ``manifest.sig``: the signature of ``manifest.txt``, which holds the digests of all other files.

    The same bundle and key give the same bytes. A signature that is there is replaced.

    Args:
        bundle: the bundle's folder; it is checked first.
        key: an Ed25519 private key, a PEM file without a passphrase.

    Returns:
        The file that was written.

    Raises:
        BundleError: the bundle is damaged, or the signature cannot be written.
        ConfigError: ``key`` cannot be read or holds no such key, or ``cryptography`` is not installed.
    """
    private = _private_key(key)
    runtime.verify(bundle)
    signature = private.sign((bundle / MANIFEST_TEXT_NAME).read_bytes())
    path = bundle / SIGNATURE_NAME
    # Beside the bundle, since a bundle may hold nothing that its manifest does not list.
    partial = bundle.absolute().with_name(f".{bundle.absolute().name}.signature-{os.getpid()}")
    try:
        partial.write_bytes(signature)
        partial.replace(path)
    except OSError as error:
        raise BundleError(f"{path} cannot be written: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _private_key(path: Path) -> Ed25519PrivateKey:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise ConfigError(
            "signing needs the package cryptography; run pip install 'qcompiler[sign]'"
        ) from error
    advice = "make one with 'openssl genpkey -algorithm ed25519 -out PRIVATE.pem'"
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise ConfigError(f"key {path} cannot be read: {error}") from error
    except TypeError as error:  # the package's way to ask for a passphrase
        raise ConfigError(
            f"key {path} has a passphrase; write a copy without it, to a safe place, with 'openssl pkey -in {path}'"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"key {path} is no private key in PEM form: {error}; {advice}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"key {path} is of another kind than Ed25519; {advice}")
    return key
