"""Fixtures that several folders of tests use."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def small_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the model in ``small_bundle.py``; tests that change it take a copy."""
    import small_bundle

    folder = tmp_path_factory.mktemp("small")
    return small_bundle.write(folder / "bundle", folder)
