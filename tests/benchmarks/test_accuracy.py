"""The table of accuracies: every variant is one of the compiler's, and what was measured is kept."""

from __future__ import annotations

import json
from pathlib import Path

import accuracy
import numpy as np
import pytest
import torch
from torch import nn

from qcompiler.config import CompileConfig

DEFAULT = next(iter(accuracy.VARIANTS))


def test_variants_are_configurations_and_the_first_is_the_default() -> None:
    configs = [CompileConfig(**options) for options in accuracy.VARIANTS.values()]
    assert configs[0] == CompileConfig()
    assert len(set(configs)) == len(configs)


def test_measures_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    torch.export.save(torch.export.export(module, (torch.randn(1, 3, 8, 8),)), tmp_path / "m.pt2")
    images = np.random.default_rng(0).normal(size=(24, 3, 8, 8)).astype(np.float32)
    with torch.no_grad():
        labels = module(torch.from_numpy(images)).argmax(1).numpy()
    np.savez(tmp_path / "c.npz", x=images)
    np.savez(tmp_path / "t.npz", x=images, labels=labels)
    output = tmp_path / "found.json"
    arguments = [
        str(tmp_path), "--model", "m.pt2", "--calibration", "c.npz", "--test", "t.npz", "--limit", "20",
        "--output", str(output), "--only", DEFAULT,
    ]  # fmt: skip
    accuracy.main(arguments)
    (entry,) = json.loads(output.read_text()).values()
    assert entry["float_top1"] == 1.0
    assert entry["top1"] == entry["agreement"] >= 0.9
    assert entry["samples"] == 20
    assert entry["sqnr_db"] > 25
    monkeypatch.setattr(accuracy, "measure", lambda *_: pytest.fail("measured again"))
    accuracy.main(arguments)
    assert f"| {DEFAULT} | " in capsys.readouterr().out
