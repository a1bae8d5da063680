"""Keys for tests of signatures, written as files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Keys:
    """Paths of a private key and of its public key."""

    private: Path
    public: Path


def make_keys(folder: Path, seed: int = 0) -> Keys:
    """An Ed25519 pair; the test is skipped where ``cryptography`` is not installed."""
    pytest.importorskip("cryptography")
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(bytes([seed] * 32))
    keys = Keys(folder / f"private{seed}.pem", folder / f"public{seed}.pem")
    keys.private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    keys.public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return keys
