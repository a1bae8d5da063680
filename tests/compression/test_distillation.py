"""The parts of the distillation loss against their formulas, and students of every kind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import qcompiler
from qcompiler.compression import Distillation
from qcompiler.errors import CompressionError, QuantizationError


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(width, width, 3), nn.ReLU(inplace=True)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 5),
    )


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(6, 3, 8, 8), torch.randint(0, 5, (6,))


def test_the_parts_are_their_formulas(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    teacher, student = network(), network().eval()
    x, labels = batch
    distill = Distillation(
        teacher, student, temperature=3.0, soft_weight=0.7, features=("0", "1"), feature_weight=2.0
    )
    loss = distill(x, labels=labels)
    t, s = teacher(x), student(x)
    p = F.softmax(t / 3, 1)
    soft = 9 * (p * (p.log() - F.log_softmax(s / 3, 1))).sum(1).mean()
    first = [(m[0](x), m[1](m[0](x).clone())) for m in (teacher, student)]
    features = sum((first[1][k] - first[0][k]).square().mean() / first[0][k].square().mean() for k in (0, 1))
    torch.testing.assert_close(loss.soft, soft)
    torch.testing.assert_close(loss.hard, F.cross_entropy(s, labels))
    torch.testing.assert_close(loss.features, features / 2)
    torch.testing.assert_close(loss.total, 0.3 * loss.hard + 0.7 * soft + features)
    torch.testing.assert_close(loss.logits, s)


def test_only_the_student_learns_and_no_hook_stays(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    teacher, student = network(), network()
    distill = Distillation(teacher, student, features=("0",))
    assert not teacher.training
    before = teacher[0][1].running_mean.clone()
    distill(batch[0]).total.backward()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(p.grad is not None for p in student.parameters())
    assert torch.equal(before, teacher[0][1].running_mean)
    assert not any(m._forward_hooks for n in (teacher, student) for m in n.modules())


def test_a_student_like_its_teacher_has_no_loss_without_labels(
    batch: tuple[torch.Tensor, torch.Tensor],
) -> None:
    teacher = network()
    loss = Distillation(teacher, teacher, features=("0", "1"))(batch[0])
    assert abs(float(loss.total.detach())) < 1e-6


def test_features_of_a_quantized_student(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    teacher = network().eval()
    qat = qcompiler.prepare_qat(teacher, (batch[0][:1],), "x86-avx2", calibration=[batch[0]])
    distill = Distillation(teacher, qat.eval(), features=("0", "1"))
    loss = distill(batch[0])
    # Eight bits: the noise of a feature is far below the feature, but not zero.
    assert 0 < float(loss.features.detach()) < 1e-2
    loss.total.backward()
    assert any(p.grad is not None for p in qat.parameters())
    with pytest.raises(QuantizationError, match="no module 'nothing'"):
        Distillation(teacher, qat, features={"0": "nothing"})


def test_attention_compares_features_of_other_widths(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    teacher, student = network(8), network(4)
    with pytest.raises(
        CompressionError, match=r"'1' has shape \[6, 8, 4, 4\] in the teacher and \[6, 4, 4, 4\]"
    ):
        Distillation(teacher, student, features=("1",))(batch[0])
    loss = Distillation(teacher, student, features=("1",), feature_loss="attention")(batch[0])
    assert 0 < float(loss.features.detach()) < 2
    same = Distillation(teacher, teacher, features=("1",), feature_loss="attention")(batch[0])
    assert float(same.features) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; it must be above 0"),
        ({"soft_weight": 1.5}, r"soft_weight is 1.5; it must be in \[0, 1\]"),
        ({"feature_weight": -1.0}, "feature_weight is -1.0"),
        ({"feature_loss": "cosine"}, "unknown feature_loss 'cosine'; known: mse, attention"),
        ({"features": ("7",)}, "the teacher has no module '7'; it has: 0, "),
        ({"features": {"0": "7"}}, "the student has no module '7'"),
    ],
)
def test_refusals(options: dict[str, object], message: str) -> None:
    with pytest.raises(CompressionError, match=message):
        Distillation(network(), network(), **options)


def test_logits_inside_of_other_outputs(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.inner(x)}

    teacher, student = Wrapped(), Wrapped()
    with pytest.raises(CompressionError, match="the teacher returns a dict; give logits="):
        Distillation(teacher, student)(batch[0])
    loss = Distillation(teacher, student, logits=lambda outputs: outputs["logits"])(batch[0])
    assert loss.logits.shape == (6, 5)
