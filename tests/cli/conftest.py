"""The command line called in this process, and a model that it compiled."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from command_line import Command, Compiled, Outcome
from torch import nn

from qcompiler.cli import main


@pytest.fixture
def qcompile(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs ``qcompile`` with arguments."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["qcompile", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return Outcome(end.value.code, out, err)

    return run


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("cli")
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 5),
    )
    images = np.random.default_rng(0).standard_normal((24, 3, 8, 8)).astype(np.float32)
    made = Compiled(folder / "m.pt2", folder / "c.npz", folder / "d.npz", folder / "bundle")
    torch.export.save(torch.export.export(network.eval(), (torch.from_numpy(images[:1]),)), made.model)
    np.savez(made.calibration, x=images[:16])
    with torch.no_grad():
        labels = network(torch.from_numpy(images)).argmax(1).numpy()
    np.savez(made.data, x=images, labels=labels)
    options = ["--calibration", made.calibration, "--output", made.bundle, "--target", "x86-avx2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["qcompile", "compile", str(made.model), *map(str, options)])
        with pytest.raises(SystemExit) as end:
            main()
    assert end.value.code == 0
    return made
