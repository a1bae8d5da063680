"""Masked weights are the smallest ones, stay zero through training and quantization, and are told in the manifest."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import qcompiler
from qcompiler.compression import Masks, mask_weights
from qcompiler.driver.zeros import describe_zeros
from qcompiler.errors import CompressionError


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def test_the_smallest_weights_of_all_layers_go() -> None:
    model = network()
    weights = torch.cat([model[k].weight.detach().flatten().abs() for k in (0, 3, 7)])
    masks = mask_weights(model, zeros=0.6)
    kept = torch.cat([model[k].weight.detach().flatten().abs() for k in (0, 3, 7)])
    assert masks.zeros == pytest.approx(0.6, abs=1 / len(weights))
    assert int((kept == 0).sum()) == round(0.6 * len(weights))
    assert weights[kept == 0].max() <= kept[kept > 0].min()


def test_two_of_four_along_the_input_channels() -> None:
    model = network()
    before = model[3].weight.detach().clone()
    masks = mask_weights(model, pattern="2:4")
    assert masks.skipped == {"0.weight": "its 3 input channels are no multiple of 4"}
    groups = model[3].weight.detach().permute(0, 2, 3, 1).reshape(-1, 4)
    originals = before.permute(0, 2, 3, 1).reshape(-1, 4).abs()
    assert ((groups != 0).sum(1) == 2).all()
    assert (
        torch.where(groups != 0, originals, torch.inf).amin(1)
        >= torch.where(groups == 0, originals, 0).amax(1)
    ).all()


def test_zeros_stay_through_training_quantization_and_compilation(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = network()
    x = torch.randn(8, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    model(x).square().sum().backward()
    optimizer.step()  # momentum that would move the zeros
    masks = mask_weights(model, pattern="2:4", keep=("7",))
    masks.attach(optimizer)
    for _ in range(2):
        model(x).square().sum().backward()
        optimizer.step()
    zero = ~masks.masks["3.weight"]
    assert (model[3].weight[zero] == 0).all()

    qat = qcompiler.prepare_qat(model.eval(), (x[:1],), "x86-avx2", calibration=[x])
    optimizer = torch.optim.Adam(qat.parameters(), 1e-2)
    kept = Masks.of_zeros(qat)
    kept.attach(optimizer)
    qat.train()
    for _ in range(2):
        qat(x).square().sum().backward()
        optimizer.step()
    torch.set_num_threads(threads)
    manifest = qcompiler.compile(qat.eval(), (x[:1],), target="x86-avx2", output=tmp_path / "bundle").manifest
    shares = [layer.zero_weights for layer in manifest.layers if layer.zero_weights is not None]
    assert len(shares) == 3
    assert sum(share >= 0.5 for share in shares) == 1
    line = describe_zeros(manifest.layers, "x86-avx2")
    assert line is not None
    assert "1 layers have" in line
    assert "no kernel for x86-avx2 skips them" in line
    without = [layer for layer in manifest.layers if (layer.zero_weights or 0) < 0.25]
    assert describe_zeros(without, "x86-avx2") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either zeros"),
        ({"zeros": 0.5, "pattern": "2:4"}, "give either zeros"),
        ({"zeros": 1.0}, "zeros is 1.0"),
        ({"pattern": "1:4"}, "unknown pattern '1:4'; known: 2:4"),
        ({"zeros": 0.5, "keep": ("9",)}, "no weight is in '9'; there are: 0.weight, 3.weight, 7.weight"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        mask_weights(network(), **options)


def test_a_model_without_layers_has_nothing_to_mask() -> None:
    with pytest.raises(CompressionError, match="no convolution and no linear layer"):
        mask_weights(nn.ReLU(), zeros=0.5)
