"""What a real GPU computes: every kernel of the suites, and whole models, in every bit. ``pytest -m gpu`` runs them."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import gpu_simulator
import models
import numpy as np
import pytest
import qc_modules

import qcompiler
from qcompiler.driver.gpu.build import build_library
from qcompiler.driver.verify import verify
from qcompiler.errors import GpuError
from qcompiler.runtime.gpu import compute_capability
from qcompiler.targets import registry
from qcompiler.targets.base import GpuTarget

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def target() -> GpuTarget:
    """The newest target that this machine's GPU runs."""
    try:
        capability = compute_capability()
    except GpuError as error:
        pytest.skip(str(error))
    targets = [t for t in registry.known() if isinstance(t, GpuTarget)]
    fitting = [t for t in targets if int(t.architectures[0].removeprefix("sm_")) <= capability]
    if not fitting:
        pytest.skip(f"no target for a GPU of compute capability {capability / 10}")
    return fitting[-1]


@pytest.mark.parametrize("name", ["conv2d", "dense", "elementwise", "pooling"])
def test_every_kernel_is_exact(name: str, target: GpuTarget, tmp_path: Path) -> None:
    suite = _suite(Path(__file__).parents[1] / "targets" / f"test_{name}.py")
    built = qc_modules.build(suite.module(), target)
    assert built.kernels is not None
    build_library(built.executable, built.kernels, tmp_path / "model.so")
    outputs = gpu_simulator.run(tmp_path / "model.so", suite.samples, simulated=False)
    expected = qc_modules.reference(suite.module(), suite.samples)
    for found, wanted in zip(outputs, expected, strict=True):
        for case, a, b in zip(suite.cases, found, wanted, strict=True):
            assert a.dtype == b.dtype, case
            np.testing.assert_array_equal(a, b, err_msg=case)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_whole_models_are_exact(name: str, target: GpuTarget, tmp_path: Path) -> None:
    pytest.importorskip("torchvision", reason="the networks are torchvision's")
    archive, data = models.write(name, tmp_path)
    bundle = tmp_path / "bundle"
    qcompiler.compile(archive, calibration=data, output=bundle, target=target.name)
    checked = verify(bundle, data, limit=4)
    assert checked.fault is None
    assert all(output.exact for output in checked.outputs)


def _suite(path: Path) -> qc_modules.Suite:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    suite: qc_modules.Suite = module.SUITE
    return suite
