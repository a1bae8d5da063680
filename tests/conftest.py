"""Fixtures that several folders of tests use."""

from __future__ import annotations

from pathlib import Path

import pytest
from c_programs import CProgram, compile_example


@pytest.fixture(scope="session")
def small_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the model in ``small_bundle.py``; tests that change it take a copy."""
    import small_bundle

    folder = tmp_path_factory.mktemp("small")
    return small_bundle.write(folder / "bundle", folder)


@pytest.fixture(scope="session")
def other_small_bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ``small_bundle_path``, with other weights."""
    import small_bundle

    folder = tmp_path_factory.mktemp("other")
    return small_bundle.write(folder / "bundle", folder, seed=1)


@pytest.fixture(scope="session")
def c_example(small_bundle_path: Path, tmp_path_factory: pytest.TempPathFactory) -> CProgram:
    """The example program of the bundles; it runs any bundle."""
    return compile_example(small_bundle_path, tmp_path_factory.mktemp("c"))
