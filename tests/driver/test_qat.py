"""From a model through a training loop to a bundle: what was trained is what runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import qcompiler
from qcompiler.driver.demo import DigitNet
from qcompiler.errors import ConfigError
from qcompiler.targets.base import QuantizationRules


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    data = load_digits()
    return torch.from_numpy(data.images).float()[:, None] / 16, torch.from_numpy(data.target)


def train(
    model: nn.Module, x: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float, freeze: bool
) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    for epoch in range(epochs):
        if freeze and epoch == epochs - 1:
            model.freeze()
        for chosen in torch.randperm(len(x)).split(128):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[chosen]), labels[chosen]).backward()
            optimizer.step()


def test_the_library_computes_what_was_trained(
    digits: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = digits
    model = DigitNet()
    train(model, images[:1200], labels[:1200], 2, 3e-3, freeze=False)
    qat = qcompiler.prepare_qat(model.eval(), (images[:1],), "x86-avx2", learned_scales=True)
    train(qat, images[:1200], labels[:1200], 2, 1e-3, freeze=True)
    qat.eval()
    torch.set_num_threads(threads)
    result = qcompiler.compile(qat, (images[:1],), target="x86-avx2", output=tmp_path / "bundle")
    assert not result.manifest.float_operators
    compiled = qcompiler.load(result.bundle)
    test = images[1200:1400]
    found = np.concatenate([compiled.run(x[None].numpy())[0] for x in test])
    assert np.array_equal(qcompiler.simulate(qat, (images[:1],), target="x86-avx2")(test).numpy(), found)
    with torch.no_grad():
        trained = qat(test).numpy()
    step = np.ptp(trained) / 255
    assert np.abs(found - trained).max() <= step
    # Every logit sums over all values below it, so one value at the border between two steps moves all ten a little.
    assert (np.abs(found - trained) > 0.1 * step).mean() < 0.1
    assert (found.argmax(1) == trained.argmax(1)).mean() >= 0.99
    assert (found.argmax(1) == labels[1200:1400].numpy()).mean() > 0.9


def test_a_module_of_other_rules_or_without_inputs_is_refused(
    digits: tuple[torch.Tensor, torch.Tensor], tmp_path: Path
) -> None:
    x = digits[0][:4]
    qat = qcompiler.prepare_qat(DigitNet().eval(), (x[:1],), "x86-avx2", calibration=[x])
    with pytest.raises(ConfigError, match="needs example_inputs"):
        qcompiler.compile(qat, output=tmp_path / "bundle")
    qat.rules = QuantizationRules(operators=QuantizationRules().operators - {"mul"})
    with pytest.raises(ConfigError, match=r"rules of another target than x86-avx2.*prepare it for x86-avx2"):
        qcompiler.compile(qat, (x[:1],), target="x86-avx2", output=tmp_path / "bundle")
    qat.rules = QuantizationRules()
    with pytest.raises(ConfigError, match="plan and gate come too late"):
        qcompiler.compile(qat, (x[:1],), target="x86-avx2", gate=True, output=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_options_are_those_of_compile(digits: tuple[torch.Tensor, torch.Tensor]) -> None:
    x = digits[0][:1]
    qat = qcompiler.prepare_qat(DigitNet().eval(), (x,), "arm-dotprod", skip_last=True)
    assert [(f.operator, f.reason) for f in qat.float_operators] == [("linear", "skip_last")]
    with pytest.raises(ConfigError, match="training takes their place"):
        qcompiler.prepare_qat(DigitNet().eval(), (x,), effort="max")
    with pytest.raises(ConfigError, match="calibration_method 'auto' compares networks"):
        qcompiler.prepare_qat(DigitNet().eval(), (x,), calibration_method="auto")
    with pytest.raises(ConfigError, match="unknown option 'nothing'; known: target, "):
        qcompiler.prepare_qat(DigitNet().eval(), (x,), nothing=1)


def test_what_is_random_in_training_is_named(caplog: pytest.LogCaptureFixture) -> None:
    examples = (torch.randn(1, 3, 8, 8),)
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.1), nn.Flatten())
    model = nn.Sequential(*layers, nn.Dropout(0.25), nn.Linear(144, 2)).eval()
    qcompiler.prepare_qat(model, examples, "x86-avx2")
    (warning,) = [r.message for r in caplog.records if "trains without dropout" in r.message]
    assert "off are: 3 (Dropout2d), 5 (Dropout)." in warning
    caplog.clear()
    qcompiler.prepare_qat(torch.export.export(model, examples), None, "x86-avx2")
    (warning,) = [r.message for r in caplog.records if "trains without dropout" in r.message]
    assert "5 (dropout)" in warning
    caplog.clear()
    qcompiler.prepare_qat(nn.Sequential(*layers[:3], nn.Dropout(0.0)).eval(), examples, "x86-avx2")
    assert "trains without dropout" not in caplog.text
